//! The settings of a client.

use std::{fmt, sync::Mutex, time::Duration};

use reqwest::redirect;
use rustls::pki_types::CertificateDer;
use url::Url;

use super::{
    client::{Inner, Neon},
    limiter::{Limiter, PER_MINUTE, PER_SECOND, Rate},
};
use crate::model::{
    config::{InvalidConfig, check_limit},
    secret::Secret,
    tls,
};

/// Address of Neon's API.
const BASE_URL: &str = "https://console.neon.tech/api/v2";
/// Longest wait for a connection to the API.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time for which an unused connection is kept. Gateways close one after about a minute, and a request that is
/// sent at that moment is lost.
const KEEP_IDLE: Duration = Duration::from_secs(30);

/// Settings of a [`Neon`] client.
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct NeonBuilder {
    key: Secret,
    base_url: String,
    org_id: Option<String>,
    request_timeout: Duration,
    call_timeout: Duration,
    requests_per_minute: u32,
    rate_share: f64,
    root_certificates: Vec<CertificateDer<'static>>,
}

impl NeonBuilder {
    pub(super) fn new(key: Secret) -> Self {
        Self {
            key,
            base_url: BASE_URL.to_owned(),
            org_id: None,
            request_timeout: Duration::from_secs(15),
            call_timeout: Duration::from_secs(60),
            requests_per_minute: PER_MINUTE,
            rate_share: 1.0,
            root_certificates: Vec::new(),
        }
    }

    /// Sets the address of the API. Defaults to Neon's; change it for an emulator or a gateway.
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.base_url = url.into();
        self
    }

    /// Sets the organization that owns the projects. Needed with a personal API key; an organization's own key implies
    /// it.
    pub fn org_id(mut self, org_id: impl Into<String>) -> Self {
        self.org_id = Some(org_id.into());
        self
    }

    /// Sets the longest wait for one answer. Defaults to 15 seconds; a creation takes about one second.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = limit;
        self
    }

    /// Sets the longest time for one call with all its repetitions, unless larger work sets the deadline
    /// ([`Neon::within`]). Defaults to 60 seconds.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// Sets the most requests in a minute, over all clients of this key in the process. Defaults to 700, Neon's limit;
    /// raise it if your account has a higher one. The smallest number among the living clients applies to all of them.
    pub fn requests_per_minute(mut self, count: u32) -> Self {
        self.requests_per_minute = count;
        self
    }

    /// Sets the share of Neon's limits that this process uses, more than 0 and at most 1. The share applies to the
    /// requests in a minute and to the 40 in a second that Neon takes on one route. Defaults to 1. With n replicas of
    /// an app, give each 1/n, because Neon counts their requests together.
    pub fn rate_share(mut self, share: f64) -> Self {
        self.rate_share = share;
        self
    }

    /// Trusts one more root certificate (DER) besides Mozilla's, such as that of a gateway.
    pub fn root_certificate(mut self, der: impl AsRef<[u8]>) -> Self {
        self.root_certificates.push(tls::certificate(der));
        self
    }

    /// Builds the client after checking the settings. Sends nothing.
    pub fn build(self) -> Result<Neon, InvalidConfig> {
        let base = self.checked_base()?;
        self.check()?;
        let http = self.http()?;
        let whole = Rate {
            per_minute: self.requests_per_minute,
            per_second: PER_SECOND,
        };
        let limiter = Limiter::new(&base, &self.key, whole.share(self.rate_share));
        Ok(Neon::new(Inner {
            http,
            base,
            key: self.key,
            org_id: self.org_id,
            request_timeout: self.request_timeout,
            call_timeout: self.call_timeout,
            limiter,
            regions: Mutex::default(),
        }))
    }

    fn checked_base(&self) -> Result<Url, InvalidConfig> {
        let url = Url::parse(&self.base_url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                InvalidConfig::new("the base url of neon's api is not an http(s) url")
            })?;
        let login = !url.username().is_empty() || url.password().is_some();
        if login || url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidConfig::new(
                "the base url of neon's api must have only a host and a path; set the api key separately",
            ));
        }
        Ok(url)
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        if self.requests_per_minute == 0 {
            return Err(InvalidConfig::new(
                "requests_per_minute must be more than zero",
            ));
        }
        if !(self.rate_share > 0.0 && self.rate_share <= 1.0) {
            return Err(InvalidConfig::new(
                "rate_share must be more than zero and at most one",
            ));
        }
        check_limit("request_timeout", self.request_timeout)?;
        check_limit("call_timeout", self.call_timeout)?;
        let key = self.key.expose();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidConfig::new(
                "neon's api key is empty, or contains characters that no api key contains",
            ));
        }
        Ok(())
    }

    fn http(&self) -> Result<reqwest::Client, InvalidConfig> {
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(&self.root_certificates)?)
            .user_agent(concat!("tenantry/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(4)
            .pool_idle_timeout(KEEP_IDLE)
            .redirect(redirect::Policy::none()) // a redirect would carry the key elsewhere
            .retry(reqwest::retry::never())
            .build()
            .map_err(|err| InvalidConfig::new(format!("the http client cannot be built: {err}")))
    }
}

// The base url may contain credentials, so it is not shown.
impl fmt::Debug for NeonBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NeonBuilder")
            .field("org_id", &self.org_id)
            .finish_non_exhaustive()
    }
}
