//! From a host name to addresses.
//!
//! A seam, because a host's addresses are not always the system's to say: service meshes, private endpoints, and the
//! emulator, whose hosts exist nowhere.

use std::{future::Future, io, net::SocketAddr, pin::Pin};

/// Finds the addresses of a host.
///
/// ```
/// use std::{io, net::SocketAddr};
/// use tenantry::Resolve;
///
/// /// Sends every tenant through one gateway.
/// struct Gateway(SocketAddr);
///
/// impl Resolve for Gateway {
///     async fn resolve(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
///         Ok(vec![self.0])
///     }
/// }
/// ```
pub trait Resolve: Send + Sync + 'static {
    /// Returns the addresses of `host`, in the order in which to try them. An address may name another port than `port`.
    ///
    /// The two families take turns, beginning with that of the first address. The next one is tried as soon as one fails,
    /// and beside it when it has been silent for 250 ms; at most 4 are tried at a time, each for 3 seconds, and the first
    /// to answer gets the one login (RFC 8305). An address that was overtaken, or did not answer the login, comes after
    /// the others for the next 5 minutes, for every host that has it, or until it answers.
    ///
    /// # Errors
    /// If there is none. The host then counts as one that cannot be reached, and is asked for again by the next attempt to
    /// connect.
    ///
    /// # Cancel safety
    /// Dropped when the time for the attempt to connect is over.
    fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The system's own name resolution. The default.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "it is written as it is")]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// [`Resolve`] with its type erased.
pub(crate) trait AnyResolve: Send + Sync {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;
}

impl<R: Resolve> AnyResolve for R {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        Box::pin(Resolve::resolve(self, host, port))
    }
}
