//! A whole network of CometBFT and Keelstone nodes on this machine, for trying things out and for tests.
//!
//! One process owns it: `keelstone testnet up` lays out keys and configuration, starts every node's two processes and
//! answers the other commands through a socket in the network's directory. What it starts ends with it, however it
//! ends: all processes are of one process group, whose leader does nothing but wait for the owner's end of a pipe to
//! close and then kills the group.
//!
//! ```text
//! DIR/testnet.json                  names, addresses and settings of the nodes
//! DIR/control.sock                  where the owner listens while the network runs
//! DIR/nodeN/keelstone/              the home of Keelstone
//! DIR/nodeN/cometbft/               the home of CometBFT
//! DIR/nodeN/{keelstone,cometbft}.log
//! ```
//!
//! Keys here are made for play: whoever can read the directory has them.

pub(crate) mod control;
pub(crate) mod hosts;
pub(crate) mod joining;
pub(crate) mod layout;
pub(crate) mod load;
pub(crate) mod network;
pub(crate) mod owner;
pub(crate) mod watch;
