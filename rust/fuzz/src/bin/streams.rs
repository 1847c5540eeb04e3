//! Fuzz target: the streams that a program asks for.

#![cfg_attr(fuzzing, no_main)]

virtnic_fuzz::program!(virtnic_fuzz::streams::target);
