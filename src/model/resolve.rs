//! The resolution of host names to addresses.
//!
//! It can be replaced, because the system cannot resolve every host: service meshes and private endpoints have their
//! own resolution, and the emulator's hosts exist nowhere.

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
    /// Returns the addresses of `host`, in the order in which to try them. An address may have another port than
    /// `port`.
    ///
    /// The two address families alternate, beginning with the family of the first address. The next address is tried as
    /// soon as one fails, or in parallel once one has been silent for 250 ms. At most 4 are tried at a time, each for 3
    /// seconds, and the first to answer gets the one login (RFC 8305). An address that was overtaken, or did not answer
    /// the login, is tried after the others for the next 5 minutes or until it answers, for every host that has it.
    ///
    /// # Errors
    /// Fails if there is no address. The host then counts as unreachable, and the next attempt to connect resolves it
    /// again.
    ///
    /// # Cancel safety
    /// The future is dropped when the time for the attempt to connect is over.
    fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The system's own name resolution. The default.
#[derive(Clone, Copy, Debug, Default)]
#[allow(
    clippy::exhaustive_structs,
    reason = "applications write this unit struct themselves"
)]
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
