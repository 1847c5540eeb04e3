//! Fuzz target: the reader of capture files.

#![cfg_attr(fuzzing, no_main)]

virtnic_fuzz::program!(virtnic_fuzz::capture::target);
