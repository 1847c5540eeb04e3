//! Clients of the ivshmem server.

#![cfg_attr(fuzzing, no_main)]

virtnic_fuzz::program!(virtnic_fuzz::ivshmem::target);
