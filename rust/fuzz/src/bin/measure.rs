//! Fuzz target: the frames that a measurement receives.

#![cfg_attr(fuzzing, no_main)]

virtnic_fuzz::program!(virtnic_fuzz::measure::target);
