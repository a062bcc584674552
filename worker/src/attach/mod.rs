//! Membership: this worker's streams to the routers, which know from them that it is there, how
//! busy it is and which prefixes it has cached.
//!
//! [`changes`], [`feed`] and [`backoff`] decide what is said and when; only [`link`] has a wire.
//! [`routers`] keeps a link to every address that the routers' names lead to.

mod admission;
mod backoff;
mod changes;
mod experts;
mod feed;
mod link;
mod messages;
mod resolver;
mod routers;

pub use admission::Admission;
pub(crate) use backoff::random;
pub use feed::Feed;
pub use link::Link;
pub use messages::Identity;
pub use resolver::Resolver;
pub use routers::Routers;
