//! The autoscaler in a loop with a fleet, hours and days of virtual time, seeded.

mod baselines;
mod change;
mod counters;
mod fleet;
mod load;
mod observe;
mod run;
mod steady;
mod table;
mod trouble;
