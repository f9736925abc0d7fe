//! Tests of the store through its public face. One binary, since linking is what takes long.

mod histories;
mod support;
