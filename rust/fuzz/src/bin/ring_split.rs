//! A split ring whose device writes anything anywhere.

#![cfg_attr(fuzzing, no_main)]

virtnic_fuzz::program!(virtnic_fuzz::ring::split);
