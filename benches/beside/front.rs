//! A front before Postgres that plays Neon: it wakes tenants, and counts wakes and logins.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    time::{Instant, sleep_until},
};

/// The time of a wake.
const WAKE: Duration = Duration::from_millis(100);
/// Most bytes of a first message.
const LONGEST: usize = 10_000;

/// Accepts connections, as long as its runtime runs. Clones are the same front.
#[derive(Clone)]
pub(crate) struct Front {
    address: SocketAddr,
    tenants: Arc<Mutex<Tenants>>,
}

#[derive(Default)]
struct Tenants {
    awake: HashMap<String, Awake>,
    counts: Counts,
    sessions: usize,
    most_sessions: usize,
}

/// A tenant with a session.
struct Awake {
    sessions: usize,
    /// The end of its wake.
    since: Instant,
}

/// Counts since the start.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) wakes: usize,
    pub(crate) logins: usize,
}

impl Front {
    /// Starts one before the Postgres at `socket`.
    pub(crate) async fn start(socket: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let front = Self {
            address: listener.local_addr()?,
            tenants: Arc::default(),
        };
        let serving = front.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (front, socket) = (serving.clone(), socket.clone());
                tokio::spawn(async move {
                    let _ = front.serve(client, socket).await; // both sides see the end
                });
            }
        });
        Ok(front)
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn counts(&self) -> Counts {
        self.tenants().counts
    }

    /// The most sessions that were open at once since this was asked last.
    pub(crate) fn take_most_sessions(&self) -> usize {
        let mut tenants = self.tenants();
        let now = tenants.sessions;
        std::mem::replace(&mut tenants.most_sessions, now)
    }

    async fn serve(&self, mut client: TcpStream, socket: PathBuf) -> io::Result<()> {
        client.set_nodelay(true)?;
        let length = client.read_u32().await?;
        let rest = (length as usize).saturating_sub(4);
        if rest > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; rest];
        client.read_exact(&mut body).await?;
        // No way asks for TLS or cancels anything, so all are logins.
        let role = role(&body).ok_or(io::ErrorKind::InvalidData)?;
        let session = Session::begin(self, role);
        sleep_until(session.awake_at).await;
        let mut server = UnixStream::connect(socket).await?;
        server.write_u32(length).await?;
        server.write_all(&body).await?;
        copy_bidirectional(&mut client, &mut server).await.map(drop)
    }

    fn tenants(&self) -> MutexGuard<'_, Tenants> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The role that a first message of protocol 3.0 names.
fn role(body: &[u8]) -> Option<String> {
    let words = body.strip_prefix(b"\0\x03\0\0")?;
    let mut words = words.split(|byte| *byte == 0);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if name == b"user" {
            return String::from_utf8(value.to_vec()).ok();
        }
    }
    None
}

/// An open session. Its drop lets the tenant sleep, if it is the last.
struct Session<'a> {
    front: &'a Front,
    role: String,
    awake_at: Instant,
}

impl<'a> Session<'a> {
    fn begin(front: &'a Front, role: String) -> Self {
        let mut tenants = front.tenants();
        let Tenants {
            awake,
            counts,
            sessions,
            most_sessions,
        } = &mut *tenants;
        counts.logins += 1;
        *sessions += 1;
        *most_sessions = (*most_sessions).max(*sessions);
        let tenant = awake.entry(role.clone()).or_insert_with(|| {
            counts.wakes += 1;
            Awake {
                sessions: 0,
                since: Instant::now() + WAKE,
            }
        });
        tenant.sessions += 1;
        Self {
            front,
            role,
            awake_at: tenant.since,
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let mut tenants = self.front.tenants();
        tenants.sessions -= 1;
        if let Some(tenant) = tenants.awake.get_mut(&self.role) {
            tenant.sessions -= 1;
            if tenant.sessions == 0 {
                tenants.awake.remove(&self.role);
            }
        }
    }
}
