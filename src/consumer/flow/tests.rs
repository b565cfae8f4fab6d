//! One test for each rule, and a modelled cluster of nsqds that plays random histories against all of them.

mod model;
mod rules;
