//! Both sides of the vhost-user interposer.

#![cfg_attr(fuzzing, no_main)]

virtnic_fuzz::program!(virtnic_fuzz::vhost_user::target);
