//! Which tenant a request is for, by its head.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderName, header::HOST, request::Parts};
use tokio::time::timeout;

use crate::{
    error::{BoxError, Error, ErrorKind, Stage},
    retry::Progress,
};

/// Longest time for a question of the application's own.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

type ByHead = dyn Fn(&Parts) -> Option<String> + Send + Sync;
type Asked = Pin<Box<dyn Future<Output = Result<Option<String>, BoxError>> + Send>>;
type ByAsking = dyn Fn(Named) -> Asked + Send + Sync;

/// How a request names its tenant: by host, path, header, what a middleware has verified, or a question of your own. Ways
/// are tried in the order in which they are joined with [`or`](Self::or).
///
/// Whose request it is, and whether they may see the tenant, is not said by this. A host name and a path are what anybody
/// can send; so is a header. Let the middleware that authenticates compare.
///
/// ```
/// use tenantry::Identify;
///
/// // acme.example.com, or example.com/t/acme
/// let identify = Identify::subdomain_of("example.com").or(Identify::after_path("/t/"));
/// # let _ = identify;
/// ```
#[derive(Clone)]
#[must_use = "it identifies nobody until `Tenants` or a `WarmLayer` has it"]
pub struct Identify(Vec<Way>);

#[derive(Clone)]
enum Way {
    Head(Arc<ByHead>),
    Asking(Arc<ByAsking>),
}

/// What of a request names its tenant, for [`Identify::asking`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Named {
    /// The host name without its port, in lower case; empty if there is none.
    pub host: String,
    /// The path, as it was sent.
    pub path: String,
    /// All headers.
    pub headers: http::HeaderMap,
}

impl Identify {
    /// The first label of a host below `domain`: `acme` in `acme.example.com`. Host names know no case, tenant ids do: the
    /// id is in lower case. Deeper names (`a.b.example.com`) and `domain` itself name nobody.
    pub fn subdomain_of(domain: impl Into<String>) -> Self {
        let suffix = format!(".{}", domain.into().to_ascii_lowercase());
        Self::head(move |head| {
            let host = host_of(head)?;
            let label = host.strip_suffix(&suffix)?;
            (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
        })
    }

    /// The path's segment after `prefix`, percent-decoded: `acme` in `/t/acme/notes` after `/t/`.
    pub fn after_path(prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        Self::head(move |head| {
            // Inside a nested router, axum has cut off what it has matched.
            #[cfg(feature = "axum")]
            let uri = head
                .extensions
                .get::<axum::extract::OriginalUri>()
                .map_or(&head.uri, |original| &original.0);
            #[cfg(not(feature = "axum"))]
            let uri = &head.uri;
            let rest = uri.path().strip_prefix(&prefix)?;
            let segment = rest.split('/').next().filter(|it| !it.is_empty())?;
            let decoded = percent_encoding::percent_decode_str(segment).decode_utf8();
            decoded.ok().map(std::borrow::Cow::into_owned)
        })
    }

    /// What a middleware before this has verified, such as the claims of a token that it has put into the request's
    /// extensions.
    pub fn verified<T: Send + Sync + 'static>(
        tenant: impl Fn(&T) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::head(move |head| head.extensions.get::<T>().and_then(&tenant))
    }

    /// A header's value; the case of `name` does not matter. **Not authenticated**: whoever can send a request can send any
    /// header. For requests that come through a proxy of your own which sets it, and removes what clients send under that
    /// name.
    ///
    /// # Panics
    /// If `name` is not a header's name.
    pub fn header(name: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes())
            .unwrap_or_else(|_| panic!("{name:?} is not a header's name"));
        Self::head(move |head| {
            let value = head.headers.get(&name)?.to_str().ok()?;
            Some(value.to_owned())
        })
    }

    /// Anything else that can be told from the head.
    pub fn head(tenant: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(vec![Way::Head(Arc::new(tenant))])
    }

    /// Whatever has to be asked for: a table of custom domains. Tried for each request, so let it remember. It has 5
    /// seconds. A layer that warms does not ask.
    pub fn asking<F, Fut>(tenant: F) -> Self
    where
        F: Fn(Named) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<String>, BoxError>> + Send + 'static,
    {
        Self(vec![Way::Asking(Arc::new(move |named| {
            Box::pin(tenant(named))
        }))])
    }

    /// This way, or `other` where this names nobody.
    pub fn or(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The tenant, as far as the head alone says it. `None` from the first way on that has to ask.
    pub(crate) fn by_head(&self, head: &Parts) -> Option<String> {
        for way in &self.0 {
            let Way::Head(tenant) = way else {
                return None;
            };
            if let Some(tenant) = tenant(head) {
                return Some(tenant);
            }
        }
        None
    }

    /// The tenant.
    ///
    /// # Errors
    /// `ErrorKind::UnknownTenant` if no way names one, `ErrorKind::Catalog` if a question failed, `ErrorKind::Timeout` if it
    /// was not answered.
    pub(crate) async fn identify(&self, head: &Parts) -> Result<String, Error> {
        for way in &self.0 {
            let tenant = match way {
                Way::Head(tenant) => tenant(head),
                Way::Asking(tenant) => {
                    let asked = Progress::new(Stage::Lookup, ASK_TIMEOUT);
                    let answer = timeout(ASK_TIMEOUT, tenant(named(head))).await;
                    answer.map_err(|_| asked.timed_out())?.map_err(|err| {
                        let message = "asking which tenant the request is for failed";
                        Error::new(ErrorKind::Catalog, message).with_source(err)
                    })?
                }
            };
            if let Some(tenant) = tenant {
                return Ok(tenant);
            }
        }
        let message = "the request names no tenant";
        Err(Error::new(ErrorKind::UnknownTenant, message))
    }
}

fn named(head: &Parts) -> Named {
    Named {
        host: host_of(head).unwrap_or_default(),
        path: head.uri.path().to_owned(),
        headers: head.headers.clone(),
    }
}

/// The host name, without its port, in lower case. HTTP/2 has it in the URI.
fn host_of(head: &Parts) -> Option<String> {
    let header = head.headers.get(HOST).and_then(|it| it.to_str().ok());
    let host = head.uri.host().or(header)?;
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    };
    Some(host.trim_end_matches('.').to_ascii_lowercase())
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
        let identify = Identify::subdomain_of("Example.com");
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
        let http2 = identify.by_head(&head("https://globex.example.com/x", &[("host", "x")]));
        assert_eq!(http2.as_deref(), Some("globex"));
    }

    #[test]
    fn a_path_names_its_segment_decoded() {
        let identify = Identify::after_path("/t/");
        let named = |path| by(&identify, path, "x");
        assert_eq!(named("/t/acme/notes").as_deref(), Some("acme"));
        assert_eq!(named("/t/ac%2Fme").as_deref(), Some("ac/me"));
        for path in ["/t/", "/t//x", "/", "/x/t/acme", "/t/%ff"] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[tokio::test]
    async fn ways_are_tried_in_their_order_and_who_is_named_nowhere_is_unknown() {
        let identify = Identify::verified(|claim: &u32| Some(format!("claim-{claim}")))
            .or(Identify::header("X-Tenant"))
            .or(Identify::asking(|named| async move {
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
        let identify = Identify::asking(|_| std::future::pending());
        let err = identify.identify(&head("/", &[])).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Lookup));
    }
}
