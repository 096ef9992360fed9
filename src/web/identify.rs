//! Identification of a request's tenant by its head.

mod host;

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderName, request::Parts};
use tokio::time::timeout;

use crate::{
    model::{
        config::InvalidConfig,
        error::{BoxError, Error, ErrorKind, Stage},
    },
    sync::progress::Progress,
};

/// Longest time for a lookup of the application ([`Identify::resolve_with`]).
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

type ByHead = dyn Fn(&Parts) -> Result<Option<String>, Error> + Send + Sync;
type Asked = Pin<Box<dyn Future<Output = Result<Option<String>, BoxError>> + Send>>;
type ByAsking = dyn Fn(RequestHead) -> Asked + Send + Sync;

/// The ways in which a request names its tenant: by host, path, header, a value that a middleware has verified, or a
/// lookup of your own. Ways are tried in the order in which [`or`](Self::or) joins them.
///
/// If the request does not use a way, the next one is tried. If the request uses a way but cannot be read, it is
/// refused (`ErrorKind::InvalidTenant`, 400), because the next way could name another tenant.
///
/// This identifies the tenant; authorization is up to you. Any client can send any host, path and header: let the
/// middleware that authenticates the client check that it belongs to this tenant.
///
/// ```
/// use tenantry::Identify;
///
/// # fn f() -> Result<(), tenantry::InvalidConfig> {
/// // acme.example.com, or example.com/t/acme
/// let identify = Identify::subdomain_of("example.com")?.or(Identify::after_path("/t/")?);
/// # let _ = identify; Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "it does nothing until it is passed to `Tenants` or a `WarmLayer`"]
pub struct Identify(Vec<Way>);

#[derive(Clone)]
enum Way {
    Head(Arc<ByHead>),
    Asking(Arc<ByAsking>),
    /// Either of two ways; both only if they name the same tenant.
    Agreeing(Arc<[Identify; 2]>),
}

/// The head alone does not decide: the tenant needs a lookup, or the request is to be refused.
struct Undecided;

/// The parts of a request that can name its tenant, for [`Identify::resolve_with`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RequestHead {
    /// The host name without its port, in lower case; empty if there is none.
    pub host: String,
    /// The path, as it was sent.
    pub path: String,
    /// All headers.
    pub headers: http::HeaderMap,
}

impl Identify {
    /// Takes the first label of a host below `domain`: `acme` in `acme.example.com`. The id is in lower case, because
    /// host names ignore case and tenant ids do not. An internationalized label is in its ASCII form, as browsers send
    /// it: `xn--bcher-kva`.
    ///
    /// Deeper names (`a.b.example.com`), `domain` itself and other hosts leave the request to the next way. The request
    /// is refused if the label is not valid in a host name (1 to 63 letters, digits and inner hyphens). It is also
    /// refused if its host cannot be read: it has two Host headers, its target and its Host header differ, or the host
    /// has characters that no host has.
    ///
    /// # Errors
    /// Fails if no host can be below `domain`: it has a scheme, a port, a path or a wildcard, is an IP address, or is
    /// not a host name.
    pub fn subdomain_of(domain: impl AsRef<str>) -> Result<Self, InvalidConfig> {
        let suffix = host::suffix(domain.as_ref())?;
        Ok(Self::by(move |head| {
            let host = host::of(head)?;
            match host.as_deref().and_then(|it| it.strip_suffix(&suffix)) {
                Some(label) if host::is_label(label) => Ok(Some(label.to_owned())),
                Some(label) if !label.contains('.') => Err(unusable(
                    "the host's first label is not valid in a host name",
                )),
                Some(_) | None => Ok(None),
            }
        }))
    }

    /// Takes the path's segment after `prefix`, percent-decoded: `acme` in `/t/acme/notes` after `/t/`. The prefix `/t`
    /// does the same, because whole segments are compared.
    ///
    /// A path that ends with `prefix` leaves the request to the next way. The request is refused if the segment is
    /// empty (`/t//notes`) or is not percent-encoded UTF-8.
    ///
    /// # Errors
    /// Fails if no path can begin with `prefix`: it has a query, a placeholder (`{tenant}`), or characters that paths
    /// have percent-encoded.
    pub fn after_path(prefix: impl AsRef<str>) -> Result<Self, InvalidConfig> {
        let prefix = path_prefix(prefix.as_ref())?;
        Ok(Self::by(move |head| {
            let rest = original_path(head).strip_prefix(&prefix);
            let Some(rest) = rest.and_then(|it| it.strip_prefix('/')) else {
                return Ok(None);
            };
            if rest.is_empty() {
                return Ok(None);
            }
            let segment = rest.split('/').next().unwrap_or_default();
            let decoded = decode(segment).filter(|it| !it.is_empty());
            let message =
                "the path segment that names the tenant is empty, or is not percent-encoded UTF-8";
            decoded.map(Some).ok_or_else(|| unusable(message))
        }))
    }

    /// Takes the tenant from a value that an earlier middleware has verified, such as the claims of a token that it has
    /// put into the request's extensions.
    pub fn verified<T: Send + Sync + 'static>(
        tenant: impl Fn(&T) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::head(move |head| head.extensions.get::<T>().and_then(&tenant))
    }

    /// Takes a header's value; the case of `name` does not matter. **Not authenticated**: any client can send any
    /// header. Use it behind a proxy of your own that sets the header and removes the one that a client sends.
    ///
    /// The request is refused if it has the header twice, or if its value is not ASCII text.
    ///
    /// # Errors
    /// Fails if `name` is not a header's name.
    pub fn header(name: &str) -> Result<Self, InvalidConfig> {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            InvalidConfig::new(format!(
                "header({name:?}): this is not a header name; write one like \"x-tenant\""
            ))
        })?;
        Ok(Self::by(move |head| {
            let mut values = head.headers.get_all(&name).iter();
            let Some(value) = values.next() else {
                return Ok(None);
            };
            if values.next().is_some() {
                return Err(unusable(
                    "the request has several headers that name a tenant",
                ));
            }
            let value = value.to_str().map(|it| Some(it.to_owned()));
            value.map_err(|_| unusable("the header that names the tenant is not ASCII text"))
        }))
    }

    /// Takes the tenant that `tenant` reads from the head. `None` leaves the request to the next way. If the request
    /// uses this way but cannot be read, return a text that is not a tenant id, such as an empty string: the request is
    /// then refused.
    pub fn head(tenant: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::by(move |head| Ok(tenant(head)))
    }

    fn by(
        tenant: impl Fn(&Parts) -> Result<Option<String>, Error> + Send + Sync + 'static,
    ) -> Self {
        Self(vec![Way::Head(Arc::new(tenant))])
    }

    /// Takes the tenant from a lookup, such as in a table of custom domains. `tenant` runs for each request, so let it
    /// cache its results. It has 5 seconds. A `WarmLayer` does not run it. A request whose host cannot be read is
    /// refused without a lookup.
    pub fn resolve_with<F, Fut>(tenant: F) -> Self
    where
        F: Fn(RequestHead) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<String>, BoxError>> + Send + 'static,
    {
        Self(vec![Way::Asking(Arc::new(move |named| {
            Box::pin(tenant(named))
        }))])
    }

    /// Takes this way, or `other` if the request does not use this one.
    pub fn or(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Takes this way or `other`, whichever the request uses. A request that uses both is refused unless they name the
    /// same tenant, byte for byte.
    ///
    /// ```
    /// use tenantry::Identify;
    ///
    /// # fn f() -> Result<(), tenantry::InvalidConfig> {
    /// // acme.example.com/t/globex/notes is a 400
    /// let identify = Identify::subdomain_of("example.com")?.agreeing_with(Identify::after_path("/t/")?);
    /// # let _ = identify; Ok(()) }
    /// ```
    pub fn agreeing_with(self, other: Self) -> Self {
        Self(vec![Way::Agreeing(Arc::new([self, other]))])
    }

    /// Returns the tenant that the head alone names. Returns `None` if a way needs a lookup first, and if the request
    /// is to be refused.
    pub(super) fn by_head(&self, head: &Parts) -> Option<String> {
        self.decide(head).ok().flatten()
    }

    /// Returns the tenant that the head alone names.
    fn decide(&self, head: &Parts) -> Result<Option<String>, Undecided> {
        for way in &self.0 {
            let tenant = match way {
                Way::Head(tenant) => tenant(head).map_err(|_| Undecided)?,
                Way::Asking(_) => return Err(Undecided),
                Way::Agreeing(both) => {
                    let [this, other] = &**both;
                    agreed(this.decide(head)?, other.decide(head)?).map_err(|_| Undecided)?
                }
            };
            if tenant.is_some() {
                return Ok(tenant);
            }
        }
        Ok(None)
    }

    /// Returns the tenant.
    ///
    /// # Errors
    /// `ErrorKind::UnknownTenant` if no way names one, `ErrorKind::InvalidTenant` if the request uses a way that cannot
    /// be read, `ErrorKind::Catalog` if a lookup failed, `ErrorKind::Timeout` if it did not end in time.
    pub(super) async fn identify(&self, head: &Parts) -> Result<String, Error> {
        let message = "the request names no tenant";
        let named = self.named_by(head).await?;
        named.ok_or_else(|| Error::new(ErrorKind::UnknownTenant, message))
    }

    async fn named_by(&self, head: &Parts) -> Result<Option<String>, Error> {
        for way in &self.0 {
            let tenant = match way {
                Way::Head(tenant) => tenant(head)?,
                Way::Asking(tenant) => ask(&**tenant, head).await?,
                Way::Agreeing(both) => {
                    let [this, other] = &**both;
                    let this = Box::pin(this.named_by(head)).await?;
                    agreed(this, Box::pin(other.named_by(head)).await?)?
                }
            };
            if tenant.is_some() {
                return Ok(tenant);
            }
        }
        Ok(None)
    }
}

/// Returns the error for a request that names its tenant in a way that cannot be read. `message` must not quote the
/// request.
fn unusable(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidTenant, message)
}

fn agreed(this: Option<String>, other: Option<String>) -> Result<Option<String>, Error> {
    match (this, other) {
        (Some(this), Some(other)) if this != other => Err(unusable(
            "the request names two different tenants, in two ways",
        )),
        (this, other) => Ok(this.or(other)),
    }
}

async fn ask(tenant: &ByAsking, head: &Parts) -> Result<Option<String>, Error> {
    let named = RequestHead {
        host: host::of(head)?.unwrap_or_default(),
        path: original_path(head).to_owned(),
        headers: head.headers.clone(),
    };
    let asked = Progress::new(Stage::Lookup, ASK_TIMEOUT);
    let answer = timeout(ASK_TIMEOUT, tenant(named)).await;
    answer.map_err(|_| asked.timed_out())?.map_err(|err| {
        let message = "the application's function for `Identify::resolve_with` failed";
        Error::new(ErrorKind::Catalog, message).with_source(err)
    })
}

/// Returns the path as it was sent. Inside a nested router, axum has removed the matched prefix from `head.uri`.
fn original_path(head: &Parts) -> &str {
    #[cfg(feature = "axum")]
    if let Some(original) = head.extensions.get::<axum::extract::OriginalUri>() {
        return original.0.path();
    }
    head.uri.path()
}

/// Returns the prefix of the tenants' paths, without the slash before the tenant's segment.
fn path_prefix(prefix: &str) -> Result<String, InvalidConfig> {
    let refuse = |why: &str| {
        Err(InvalidConfig::new(format!(
            "after_path({prefix:?}): {why}; write what comes before the tenant's segment, such as \"/t/\""
        )))
    };
    let is_template = ["{", "}", "/:", "/*", "://"]
        .iter()
        .any(|it| prefix.contains(it));
    if is_template {
        return refuse("a prefix has no placeholder and no scheme");
    }
    if prefix.contains(['?', '#']) {
        return refuse("a prefix has no query and no fragment");
    }
    let is_sent_so = |it: u8| it.is_ascii_graphic() && !b"\"<>\\^`|".contains(&it);
    if !prefix.bytes().all(is_sent_so) {
        return refuse("this contains characters that paths percent-encode");
    }
    let segments = prefix.trim_matches('/');
    Ok(if segments.is_empty() {
        String::new()
    } else {
        format!("/{segments}")
    })
}

/// Decodes a segment of a path. Returns `None` if it is not percent-encoded UTF-8.
fn decode(segment: &str) -> Option<String> {
    let is_encoded = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|it| it.iter().all(u8::is_ascii_hexdigit))
    };
    if !segment.split('%').skip(1).all(is_encoded) {
        return None;
    }
    let decoded = percent_encoding::percent_decode_str(segment).decode_utf8();
    decoded.ok().map(std::borrow::Cow::into_owned)
}

impl fmt::Debug for Identify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identify").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn by(identify: &Identify, uri: &str, host: &str) -> Option<String> {
        identify.by_head(&head(uri, &[("host", host)]))
    }

    #[test]
    fn a_host_names_its_first_label_and_nothing_else() {
        let identify = Identify::subdomain_of("Example.com").unwrap();
        let named = |host| by(&identify, "/", host);
        for host in [
            "acme.example.com",
            "acme.example.com:8080",
            "ACME.Example.COM",
            "acme.example.com.",
        ] {
            assert_eq!(named(host).as_deref(), Some("acme"), "{host}");
        }
        for host in [
            "example.com",
            ".example.com",
            "a.b.example.com",
            "acme.example.com.evil.org",
            "acmeexample.com",
            "",
        ] {
            assert_eq!(named(host), None, "{host:?}");
        }
        let http2 = identify.by_head(&head("https://globex.example.com/x", &[]));
        assert_eq!(http2.as_deref(), Some("globex"));
    }

    #[test]
    fn a_path_names_its_segment_decoded() {
        let identify = Identify::after_path("/t/").unwrap();
        let named = |path| by(&identify, path, "x");
        assert_eq!(named("/t/acme/notes").as_deref(), Some("acme"));
        assert_eq!(named("/t/ac%2Fme").as_deref(), Some("ac/me"));
        for path in ["/t/", "/t//x", "/", "/x/t/acme", "/t/%ff"] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn a_prefix_or_a_header_that_no_request_can_have_is_refused_with_what_to_write() {
        for prefix in [
            "/t/{tenant}",
            "/:tenant",
            "/*",
            "/t?x=",
            "/t#x",
            "/ä/",
            "/a b/",
            "/a\\b",
        ] {
            let err = Identify::after_path(prefix).unwrap_err().to_string();
            assert!(err.contains("write what comes before"), "{err}");
        }
        for name in ["", "x tenant", "x-tenant:", "mandänt"] {
            let err = Identify::header(name).unwrap_err().to_string();
            assert!(err.contains("write one like"), "{err}");
        }
    }

    #[tokio::test]
    async fn two_ways_that_must_agree_are_one_where_they_do() {
        let by_host = Identify::subdomain_of("example.com").unwrap();
        let by_path = Identify::after_path("/t/").unwrap();
        let identify = by_host.agreeing_with(by_path);
        for (path, host, tenant) in [
            ("/t/acme/notes", "acme.example.com", Some("acme")),
            ("/notes", "acme.example.com", Some("acme")),
            ("/t/acme/notes", "example.com", Some("acme")),
            ("/t/globex/notes", "acme.example.com", None),
            ("/t/Acme/notes", "acme.example.com", None),
            ("/t/%ff/notes", "acme.example.com", None),
        ] {
            let head = head(path, &[("host", host)]);
            assert_eq!(identify.by_head(&head).as_deref(), tenant, "{path} {host}");
            match identify.identify(&head).await {
                Ok(named) => assert_eq!(Some(&*named), tenant, "{path} {host}"),
                Err(err) => assert_eq!(err.kind(), ErrorKind::InvalidTenant, "{path} {host}"),
            }
        }
        let asked = Identify::resolve_with(|_| async { Ok(Some("globex".to_owned())) });
        let identify = identify.agreeing_with(asked);
        let head = head("/notes", &[("host", "acme.example.com")]);
        assert_eq!(identify.by_head(&head), None, "the head alone does not say");
        let err = identify.identify(&head).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidTenant);
    }

    #[tokio::test]
    async fn ways_are_tried_in_their_order_and_who_is_named_nowhere_is_unknown() {
        let identify = Identify::verified(|claim: &u32| Some(format!("claim-{claim}")))
            .or(Identify::header("X-Tenant").unwrap())
            .or(Identify::resolve_with(|named| async move {
                match named.path.as_str() {
                    "/down" => Err("the table is down".into()),
                    path => Ok((path == "/asked").then(|| "asked".to_owned())),
                }
            }));
        let mut both = head("/", &[("x-tenant", "header")]);
        assert_eq!(identify.identify(&both).await.unwrap(), "header");
        both.extensions.insert(7_u32);
        assert_eq!(identify.identify(&both).await.unwrap(), "claim-7");
        let asked = head("/asked", &[]);
        assert_eq!(identify.identify(&asked).await.unwrap(), "asked");
        assert_eq!(
            identify.by_head(&asked),
            None,
            "the head alone does not say"
        );
        let nobody = identify.identify(&head("/", &[])).await.unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::UnknownTenant);
        let down = identify.identify(&head("/down", &[])).await.unwrap_err();
        assert_eq!(down.kind(), ErrorKind::Catalog);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_without_an_answer_ends() {
        let identify = Identify::resolve_with(|_| std::future::pending());
        let err = identify.identify(&head("/", &[])).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Lookup));
    }
}
