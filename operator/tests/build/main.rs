//! The objects that ModelDeployments come to, and what is said of ModelDeployments that come to none.

mod cases;
mod objects;
mod pods;
mod properties;
mod restricted;
mod revisions;
mod routers;
mod validation;
