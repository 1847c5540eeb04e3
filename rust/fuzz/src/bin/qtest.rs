//! The reader of the QTest socket.

#![cfg_attr(fuzzing, no_main)]

virtnic_fuzz::program!(virtnic_fuzz::qtest::target);
