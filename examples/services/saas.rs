//! A notes service for many customers, each with a database of its own.
//!
//! `tests/with-postgres cargo run --example saas` runs it on an emulator of Neon, on this machine. With `NEON_API_KEY`
//! and `TENANTRY_NAMESPACE` set, it runs on Neon itself. With `CATALOG_URL` and `CATALOG_KEYS` set too, it runs as one
//! of several replicas. Then:
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
//! There is no login here. A real service has one in front of all routes, and keeps the last three for its operators.
//! Only a sign-up creates a database: a request for a tenant that has not signed up gets a 404.
//!
//! Ctrl-C and SIGTERM end the service within 10 seconds, also if a request is stuck. A second Ctrl-C ends it at once.
//! Warnings are logged by default; `RUST_LOG=tenantry=debug` logs more.

use std::{
    env::{self, VarError},
    io,
    pin::pin,
    process,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{FromRef, Path, State},
    http::{HeaderMap, StatusCode, Uri, header::HOST},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tenantry::{
    BoxError, Error, ErrorKind, Explanation, Identify, InvalidConfig, KeyRing, Neon, Provisioner,
    Schema, Settings, Status, Tenant, TenantRouter, Tenants, WarmLayer,
    catalog::{Memory, Postgres},
    emulator::Emulator,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{sleep, timeout},
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Longest note, in bytes.
const LONGEST_NOTE: usize = 10_000;
/// Longest time for running requests to end after the service is told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// Longest time after that for the router's calls to end and its connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    log()?;
    let metrics = metrics().install_recorder()?; // before the router, which keeps handles of the recorder
    let recorder_upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(5)).await;
            recorder_upkeep.run_upkeep(); // or records pile up between two scrapes
        }
    });
    let address = variable("LISTEN")?.unwrap_or_else(|| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(&address).await?;
    let (router, _emulator) = router().await?;
    serve(listener, &router, metrics).await
}

/// Logs warnings, unless `RUST_LOG` says otherwise.
pub(crate) fn log() -> Result<(), BoxError> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    let filter = filter.from_env()?;
    tracing_subscriber::fmt().with_env_filter(filter).init();
    Ok(())
}

/// Reads a variable of the environment. One that is not UTF-8 is an error, and does not count as absent.
fn variable(name: &str) -> Result<Option<String>, BoxError> {
    match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            Err(invalid_setting(format!("the variable {name} is not UTF-8")))
        }
    }
}

/// Reads a variable of the environment that must be set.
fn required(name: &str) -> Result<String, BoxError> {
    variable(name)?.ok_or_else(|| invalid_setting(format!("the variable {name} is missing")))
}

/// Returns an error that `main` prints as a sentence.
fn invalid_setting(message: String) -> BoxError {
    Error::new(ErrorKind::Misconfigured, message).into()
}

/// Serves until the process is told to stop, then takes [`GRACE`] and [`CLOSE_TIMEOUT`] at most.
pub(crate) async fn serve(
    listener: TcpListener,
    router: &TenantRouter,
    metrics: PrometheusHandle,
) -> Result<(), BoxError> {
    let mut signals = Signals::new()?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    println!("Try it:\n{}", commands(&format!("http://{address}")));
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app(router, metrics)?).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        () = signals.next() => {}
    }
    println!(
        "stopping, within {} s; Ctrl-C to stop at once",
        (GRACE + CLOSE_TIMEOUT).as_secs()
    );
    tokio::spawn(async move {
        signals.next().await;
        process::exit(130);
    });
    let _ = stop.send(());
    if timeout(GRACE, server).await.is_err() {
        tracing::warn!("some requests did not end in time, and are given up");
    }
    router.close_within(CLOSE_TIMEOUT).await;
    Ok(())
}

/// The signals that stop the process: from Ctrl-C, and from a supervisor.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Returns metrics for Prometheus, with histograms that can be summed over replicas.
pub(crate) fn metrics() -> PrometheusBuilder {
    let seconds = [
        0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0,
    ];
    let builder = PrometheusBuilder::new();
    builder.set_buckets(&seconds).expect("there are some")
}

/// Builds the router: on Neon if there is a key, otherwise on the returned emulator, which stops when it is dropped.
async fn router() -> Result<(TenantRouter, Option<Emulator>), BoxError> {
    if let Some(key) = variable("NEON_API_KEY")? {
        let neon = Neon::builder(key).build()?;
        let namespace = required("TENANTRY_NAMESPACE")?; // keeps staging and production apart
        let provisioner = match variable("CATALOG_URL")? {
            Some(url) => {
                let keys = KeyRing::parse(&required("CATALOG_KEYS")?)?;
                Provisioner::new(Postgres::builder(url).keys(keys).build()?, neon, namespace)
            }
            // After a restart the catalog is empty. A tenant that signs up again gets its database and notes back.
            None => Provisioner::new(Memory::new(), neon, namespace),
        };
        let router = TenantRouter::provisioning(provisioner).schema(schema());
        return Ok((router.settings(&Settings::from_env()?).build()?, None));
    }
    let emulator = Emulator::builder()
        .wake_delay(Duration::from_millis(350))
        .suspend_after(Duration::from_secs(60))
        .start()
        .await?;
    Ok((router_on(&emulator)?, Some(emulator)))
}

/// Builds a router on `emulator`.
pub(crate) fn router_on(emulator: &Emulator) -> Result<TenantRouter, BoxError> {
    let neon = Neon::builder(emulator.api_key())
        .base_url(emulator.api_url())
        .build()?;
    let provisioner = Provisioner::new(Memory::new(), neon, "notes");
    let router = TenantRouter::provisioning(provisioner)
        .schema(schema())
        .resolve(emulator.resolver())
        .root_certificate(emulator.root_certificate());
    Ok(router.build()?)
}

/// The schema of each tenant's database. A new database has it before its first use, and an older one gets what it
/// lacks at its next request. By default only a sign-up creates a database.
fn schema() -> Schema {
    let notes = "CREATE TABLE IF NOT EXISTS notes
                 (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)";
    Schema::new()
        .step(1, "notes", notes)
        .step(
            2,
            "time of a note",
            "ALTER TABLE notes ADD COLUMN at timestamptz DEFAULT now()",
        )
        .requires(1) // no handler needs the time yet, so no request waits for step 2
}

/// The state that the handlers share.
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

/// Builds the service.
pub(crate) fn app(
    router: &TenantRouter,
    metrics: PrometheusHandle,
) -> Result<Router, InvalidConfig> {
    // A request that names two tenants, one by its host and one by its path, is refused.
    let by_host = Identify::subdomain_of("localhost")?;
    let identify = by_host.agreeing_with(Identify::after_path("/t/")?);
    let notes = get(list).post(add);
    let app = Router::new()
        .route("/", get(overview))
        .route("/notes", notes.clone())
        .route("/t/{tenant}/notes", notes)
        // This layer is only for the routes above: no other route, and no unknown path, wakes a tenant.
        .route_layer(WarmLayer::new(router.clone(), identify.clone()))
        .route("/signup/{tenant}", post(sign_up))
        .route("/status", get(status))
        .route("/status/{tenant}", get(explain))
        .route("/metrics", get(scrape))
        .route("/ready", get(ready))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(App {
            tenants: Tenants::new(router.clone(), identify),
            metrics,
        });
    Ok(app)
}

/// Returns the commands that try the service at `base`.
fn commands(base: &str) -> String {
    format!(
        "curl -X POST {base}/signup/acme                 # creates the tenant's database\n\
         curl --data 'buy milk' {base}/t/acme/notes      # writes a note\n\
         curl {base}/t/acme/notes                        # reads the latest notes\n\
         curl {base}/status/acme                         # tells in which state the tenant is\n\
         curl {base}/status                              # tells what the router holds and has done\n\
         curl {base}/metrics                             # tells the same to Prometheus\n"
    )
}

/// Answers with the commands that try the service.
async fn overview(headers: HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.unwrap_or("localhost");
    let commands = commands(&format!("http://{host}"));
    format!("A notes service for many customers, each with a database of its own.\n\n{commands}")
}

async fn not_found(uri: Uri) -> (StatusCode, String) {
    let text = format!(
        "there is nothing at {}; GET / says what there is\n",
        uri.path()
    );
    (StatusCode::NOT_FOUND, text)
}

async fn method_not_allowed() -> (StatusCode, &'static str) {
    let text = "there is no such method here; GET / says what there is\n";
    (StatusCode::METHOD_NOT_ALLOWED, text)
}

/// Creates the tenant's database. May be sent again: an existing tenant stays as it is.
async fn sign_up(State(app): State<App>, Path(tenant): Path<String>) -> Result<StatusCode, Failed> {
    let is_known = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    let is_label = (1..=63).contains(&tenant.len()) && tenant.bytes().all(is_known);
    if !is_label || tenant.starts_with('-') || tenant.ends_with('-') {
        return Err(Failed::Name);
    }
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

/// Returns the tenant's latest notes. `read` runs again by itself if the connection dies.
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

/// Writes a note, and never twice: an unknown outcome of the COMMIT is an error of its own.
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

/// The reason why a request was not served.
enum Failed {
    Length,
    Name,
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
            Self::Name => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "a tenant is one label of a host name: 1 to 63 of a-z, 0-9 and inner hyphens\n",
            )
                .into_response(),
            Self::Database(err) => err.into_response(), // problem+json, with Retry-After where it is known
        }
    }
}

/// Returns the router's status.
async fn status(State(app): State<App>) -> Json<Status> {
    Json(app.tenants.router().status())
}

/// Returns the router's knowledge of one tenant, and what the next request would meet.
async fn explain(
    State(app): State<App>,
    Path(tenant): Path<String>,
) -> Result<Json<Explanation>, Error> {
    app.tenants.router().explain(&tenant).map(Json)
}

/// Returns the metrics for Prometheus.
async fn scrape(State(app): State<App>) -> String {
    app.tenants.router().record_metrics();
    app.metrics.render()
}

/// Returns 200 if requests should be sent here, otherwise 503. Uses no tenant.
async fn ready(State(app): State<App>) -> StatusCode {
    if app.tenants.router().is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
