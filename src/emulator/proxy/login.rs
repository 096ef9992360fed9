//! The login of a client: its endpoint, its role and its password. No compute is touched here.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Duration, timeout},
};

use super::{
    message::Message,
    scram::{Denied, Exchange, PLAIN, PLUS, Verifier},
};

/// Neon's time limit for a client's part of the login.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Kinds of `Authentication…` messages.
const CLEARTEXT: u32 = 3;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// The text that Neon's proxy sends to a client that it does not let in.
#[derive(Debug)]
pub(in crate::emulator) struct Refusal(pub(in crate::emulator) String);

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self("Internal error".to_owned())
    }
}

/// Checks the client's password by SCRAM. Returns the message that completes the login. Neon holds it back until the
/// compute is up, so that the client receives nothing while it waits.
pub(in crate::emulator) async fn authenticate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    user: &str,
    verifier: &Verifier,
    certificate: &[u8],
) -> Result<Message, Refusal> {
    let dialogue = async {
        let offer = format!("{PLUS}\0{PLAIN}\0\0");
        send(stream, &Message::authentication(SASL, offer.as_bytes())).await?;
        let initial = response(stream).await?;
        let (mechanism, message) = initial_response(&initial).ok_or_else(violation)?;
        let exchange = Exchange::begin(verifier, mechanism, message, certificate);
        let exchange = exchange.map_err(|denied| refusal(denied, user))?;
        send(
            stream,
            &Message::authentication(SASL_CONTINUE, exchange.answer().as_bytes()),
        )
        .await?;
        let last = response(stream).await?;
        let proof = std::str::from_utf8(&last).map_err(|_| violation())?;
        let proved = exchange
            .finish(proof)
            .map_err(|denied| refusal(denied, user))?;
        Ok(Message::authentication(SASL_FINAL, proved.as_bytes()))
    };
    let late = || Refusal("Authentication timed out".to_owned());
    timeout(LOGIN_TIMEOUT, dialogue)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Asks for the password in clear text. Clients that cannot name their endpoint in another way send
/// `endpoint=<id>;<password>` (or `$` in place of the semicolon). Returns the endpoint and the password.
pub(in crate::emulator) async fn endpoint_in_password(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    otherwise: &str,
) -> Result<(String, String), Refusal> {
    let dialogue = async {
        send(stream, &Message::authentication(CLEARTEXT, &[])).await?;
        let given = response(stream).await?;
        let given = String::from_utf8_lossy(&given);
        let rest = given.trim_end_matches('\0').strip_prefix("endpoint=");
        let parts = rest.and_then(|rest| rest.split_once([';', '$']));
        let (endpoint, password) = parts.ok_or_else(|| Refusal(otherwise.to_owned()))?;
        Ok((endpoint.to_owned(), password.to_owned()))
    };
    let late = || Refusal("Authentication timed out".to_owned());
    timeout(LOGIN_TIMEOUT, dialogue)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Returns the text for a wrong password. Neon's text has single quotes where Postgres's has double ones.
pub(in crate::emulator) fn wrong_password(user: &str) -> String {
    format!("password authentication failed for user '{user}'")
}

fn refusal(denied: Denied, user: &str) -> Refusal {
    match denied {
        Denied::WrongPassword => Refusal(wrong_password(user)),
        Denied::Violation => violation(),
    }
}

fn violation() -> Refusal {
    Refusal("authentication protocol violation".to_owned())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> io::Result<()> {
    message.write(stream).await?;
    stream.flush().await
}

/// Reads the body of the client's next answer.
async fn response(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Refusal> {
    let message = Message::read(stream).await?;
    if message.tag() == b'p' {
        Ok(message.body().to_vec())
    } else {
        Err(violation())
    }
}

/// Returns the mechanism and the first message of a body, which is a name that ends in zero, four bytes of length, and
/// the message.
fn initial_response(body: &[u8]) -> Option<(&str, &str)> {
    let end = body.iter().position(|&byte| byte == 0)?;
    let mechanism = std::str::from_utf8(&body[..end]).ok()?;
    let message = std::str::from_utf8(body.get(end + 5..)?).ok()?;
    Some((mechanism, message))
}
