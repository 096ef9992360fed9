//! A gateway in front of an emulator's API: TLS with a certificate of its own, and answers that it may alter.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::Response,
    serve::Listener,
};
use reqwest::Client;
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use serde_json::Value;
use tenantry::{BoxError, emulator::Emulator};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use crate::cold_resume::neon_service::NeonService;

/// Alters the answer to a request such as `POST /api/v2/projects`.
pub(crate) type Alter = fn(request: &str, answer: &mut Value);

/// Ends when it is dropped.
pub(crate) struct Relay {
    pub(crate) url: String,
    /// Its certificate.
    pub(crate) pem: String,
    _task: AbortOnDropHandle<io::Result<()>>,
}

#[derive(Clone)]
struct Upstream {
    http: Client,
    origin: String,
    alter: Alter,
}

impl Relay {
    pub(crate) async fn before(emulator: &Emulator, alter: Alter) -> Result<Self, BoxError> {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)?;
        let listener = Tls {
            tcp: TcpListener::bind("127.0.0.1:0").await?,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        };
        let url = emulator.api_url();
        let (origin, base) = url.split_at(url.find("/api").ok_or("no path")?);
        let url = format!(
            "https://localhost:{}{base}",
            listener.tcp.local_addr()?.port()
        );
        let upstream = Upstream {
            http: NeonService::of(emulator)?.http()?,
            origin: origin.to_owned(),
            alter,
        };
        let routes = Router::new().fallback(pass).with_state(upstream);
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(Self {
            url,
            pem: certified.cert.pem(),
            _task: AbortOnDropHandle::new(serving),
        })
    }
}

async fn pass(State(upstream): State<Upstream>, request: Request) -> Response {
    let passed = upstream.pass(request).await;
    passed.unwrap_or_else(|err| {
        let mut answer = Response::new(Body::from(err.to_string()));
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
        answer
    })
}

impl Upstream {
    async fn pass(&self, request: Request) -> Result<Response, BoxError> {
        let (head, body) = request.into_parts();
        let told = format!("{} {}", head.method, head.uri.path());
        let url = format!("{}{}", self.origin, head.uri);
        let mut passed = self.http.request(head.method, url);
        for (name, value) in &head.headers {
            if name == "authorization" || name == CONTENT_TYPE {
                passed = passed.header(name, value);
            }
        }
        let passed = passed.body(to_bytes(body, usize::MAX).await?);
        let answer = passed.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut body = answer.bytes().await?;
        if let Ok(mut value) = serde_json::from_slice(&body) {
            (self.alter)(&told, &mut value);
            body = value.to_string().into();
        }
        let mut answer = Response::new(Body::from(body));
        *answer.status_mut() = status;
        for (name, value) in &headers {
            if name == CONTENT_TYPE || name == "x-neon-ret-request-id" {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        Ok(answer)
    }
}

struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.tcp.accept().await else {
                continue;
            };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
