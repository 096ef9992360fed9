//! The machine that the emulator runs on: accounts, programs, processes and folders.

pub(in crate::emulator) mod account;
pub(in crate::emulator) mod binaries;
pub(in crate::emulator) mod daemon;
pub(in crate::emulator) mod process;
pub(in crate::emulator) mod scratch;
