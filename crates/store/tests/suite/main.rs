//! Tests of the store through its public face. One binary, since linking is what takes long.

mod damage;
mod directory;
mod faults;
mod histories;
mod kill;
mod kv;
mod places;
mod support;
