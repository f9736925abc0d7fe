//! The binary as people and machines meet it: exit codes, signals, sockets, and what hostile input gets.
//!
//! Every test runs the real program on a directory of its own and talks to it over real sockets. Names begin with the
//! id of the hostile case they answer, where there is one.

mod audit;
mod bundles;
mod commands;
mod consistency;
mod damage;
mod durable;
mod followers;
mod homes;
mod http;
mod https;
mod keys;
mod monitoring;
mod node;
mod patience;
mod programs;
mod recovery;
mod sessions;
mod snapshots;
mod statesync;
mod support;
mod sync;
mod syscalls;
mod testnet;
mod watchdog;
mod world;
