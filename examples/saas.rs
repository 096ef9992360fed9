//! A notes service for many customers, each with a database of its own.
//!
//! `tests/with-postgres cargo run --example saas` runs it on an emulator of Neon, on this machine. With `NEON_API_KEY` and
//! `TENANTRY_NAMESPACE` set it runs on Neon itself; with `CATALOG_URL` and `CATALOG_KEYS` besides, as one of many. Then:
//!
//! ```sh
//! curl -X POST localhost:3000/signup/acme
//! curl -X POST acme.localhost:3000/notes -d 'hello'     # the tenant by subdomain
//! curl localhost:3000/t/acme/notes                      # or by path
//! curl localhost:3000/status/acme                       # why it is where it is
//! curl localhost:3000/status
//! curl localhost:3000/metrics
//! ```
//!
//! There is no login here: a service of yours has one in front of everything, and keeps the last three for its operators.

use std::{env, time::Duration};

use axum::{
    Json, Router,
    extract::{FromRef, Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tenantry::{
    BoxError, Error, ErrorKind, Explanation, Identify, KeyRing, Neon, Provisioner, Settings,
    Status, Tenant, TenantRouter, Tenants, WarmLayer,
    emulator::Emulator,
    records::{Memory, Postgres},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// Longest note, in bytes.
const LONGEST_NOTE: usize = 10_000;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt::init(); // more of it with RUST_LOG=tenantry=debug
    let metrics = metrics().install_recorder()?; // before the router, which keeps its handles
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep(); // or what was recorded piles up between two scrapes
        }
    });
    let (router, _emulator) = router().await?;
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(&address).await?;
    println!("listening on http://{address}");
    axum::serve(listener, app(&router, metrics))
        .with_graceful_shutdown(stopped())
        .await?;
    router.close_within(Duration::from_secs(10)).await; // requests are done; say goodbye to the databases
    Ok(())
}

/// Returns when the process is told to stop: by whoever runs it, or by Ctrl-C.
async fn stopped() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Metrics for Prometheus, with histograms that can be added up over replicas.
pub(crate) fn metrics() -> PrometheusBuilder {
    let seconds = [
        0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0,
    ];
    let builder = PrometheusBuilder::new();
    builder.set_buckets(&seconds).expect("there are some")
}

/// The router: on Neon if there is a key, else on an emulator, which lives as long as what is returned.
async fn router() -> Result<(TenantRouter, Option<Emulator>), BoxError> {
    if let Ok(key) = env::var("NEON_API_KEY") {
        let neon = Neon::builder(key).build()?;
        let namespace = env::var("TENANTRY_NAMESPACE")?; // what keeps staging and production apart
        let provisioner = match env::var("CATALOG_URL") {
            Ok(url) => {
                let keys = KeyRing::parse(&env::var("CATALOG_KEYS")?)?;
                Provisioner::new(Postgres::builder(url).keys(keys).build()?, neon, namespace)
            }
            Err(_) => Provisioner::new(Memory::new(), neon, namespace), // forgets who signed up, not what they wrote
        };
        let router = TenantRouter::provisioning(with_tables(provisioner));
        return Ok((router.settings(&Settings::from_env()?).build()?, None));
    }
    let emulator = Emulator::builder()
        .wake_delay(Duration::from_millis(350))
        .suspend_after(Duration::from_secs(60))
        .start()
        .await?;
    Ok((on(&emulator)?, Some(emulator)))
}

/// A router on `emulator`.
pub(crate) fn on(emulator: &Emulator) -> Result<TenantRouter, BoxError> {
    let neon = Neon::builder(emulator.api_key())
        .base_url(emulator.api_url())
        .build()?;
    let provisioner = with_tables(Provisioner::new(Memory::new(), neon, "notes"));
    let router = TenantRouter::provisioning(provisioner)
        .resolve(emulator.resolver())
        .root_certificate(emulator.root_certificate());
    Ok(router.build()?)
}

/// Tenants get a database when they sign up, not when somebody names them; and never one without its tables.
fn with_tables(provisioner: Provisioner) -> Provisioner {
    provisioner.explicit().prepare(|database| async move {
        database
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS notes
                 (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)",
            )
            .await?;
        Ok(())
    })
}

/// What the handlers share.
#[derive(Clone)]
struct App {
    tenants: Tenants,
    metrics: PrometheusHandle,
}

impl FromRef<App> for Tenants {
    fn from_ref(app: &App) -> Self {
        app.tenants.clone()
    }
}

/// The service.
pub(crate) fn app(router: &TenantRouter, metrics: PrometheusHandle) -> Router {
    let identify = Identify::subdomain_of("localhost").or(Identify::after_path("/t/"));
    let notes = get(list).post(add);
    Router::new()
        .route("/notes", notes.clone())
        .route("/t/{tenant}/notes", notes)
        // Only for what was said so far: nothing else is to wake a tenant, nor is what no route matches.
        .route_layer(WarmLayer::new(router.clone(), identify.clone()))
        .route("/signup/{tenant}", post(sign_up))
        .route("/status", get(status))
        .route("/status/{tenant}", get(explain))
        .route("/metrics", get(scrape))
        .route("/ready", get(ready))
        .with_state(App {
            tenants: Tenants::new(router.clone(), identify),
            metrics,
        })
}

/// Creates the tenant's database. Safe to be sent again: a tenant that is there stays as it is.
async fn sign_up(State(app): State<App>, Path(tenant): Path<String>) -> Result<StatusCode, Error> {
    let fleet = app.tenants.router().fleet();
    let fleet =
        fleet.ok_or_else(|| Error::new(ErrorKind::Misused, "the router does not provision"))?;
    fleet.provision(&tenant).await?;
    Ok(StatusCode::CREATED)
}

#[derive(Serialize)]
struct Note {
    id: i64,
    text: String,
}

/// The tenant's latest notes. Run again by itself if the connection dies under it.
async fn list(Tenant(tenant): Tenant) -> Result<Json<Vec<Note>>, Failed> {
    let rows = tenant
        .read(|tx| async move {
            let sql = "SELECT id, text FROM notes ORDER BY id DESC LIMIT 100";
            Ok::<_, Error>(tx.query(sql, &[]).await?)
        })
        .await?;
    let notes = rows.iter().map(|row| Note {
        id: row.get("id"),
        text: row.get("text"),
    });
    Ok(Json(notes.collect()))
}

/// Writes a note. Never twice: what may have been committed is an error of its own.
async fn add(Tenant(tenant): Tenant, text: String) -> Result<(StatusCode, Json<Note>), Failed> {
    if text.is_empty() || text.len() > LONGEST_NOTE {
        return Err(Failed::Length);
    }
    let note = &text;
    let id = tenant
        .transaction(|tx| async move {
            let sql = "INSERT INTO notes (text) VALUES ($1) RETURNING id";
            Ok::<_, Error>(tx.query_one(sql, &[note]).await?.get("id"))
        })
        .await?;
    Ok((StatusCode::CREATED, Json(Note { id, text })))
}

/// Why a request was not served.
enum Failed {
    Length,
    Database(Error),
}

impl From<Error> for Failed {
    fn from(err: Error) -> Self {
        Self::Database(err)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        match self {
            Self::Length => (
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("a note has 1 to {LONGEST_NOTE} bytes"),
            )
                .into_response(),
            Self::Database(err) => err.into_response(), // problem+json, with Retry-After where it is known
        }
    }
}

/// What the router holds and has done.
async fn status(State(app): State<App>) -> Json<Status> {
    Json(app.tenants.router().status())
}

/// What it knows of one tenant, and what the next request would meet.
async fn explain(
    State(app): State<App>,
    Path(tenant): Path<String>,
) -> Result<Json<Explanation>, Error> {
    app.tenants.router().explain(&tenant).map(Json)
}

/// The same and more for Prometheus.
async fn scrape(State(app): State<App>) -> String {
    app.tenants.router().record_metrics();
    app.metrics.render()
}

/// Whether requests should be sent here. Asks no tenant.
async fn ready(State(app): State<App>) -> StatusCode {
    if app.tenants.router().is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
