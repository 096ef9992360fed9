//! The server side of SCRAM-SHA-256 (RFC 5802 and 7677), with and without channel binding.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use postgres_protocol::password::scram_sha_256;
use sha2::{Digest, Sha256};

use crate::model::secret::Secret;

/// The mechanism with channel binding.
pub(in crate::emulator) const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The mechanism without channel binding.
pub(in crate::emulator) const PLAIN: &str = "SCRAM-SHA-256";

/// The form in which a server stores a password: enough to check the password, not enough to log in with it.
#[derive(Clone)]
pub(in crate::emulator) struct Verifier {
    text: Secret,
    iterations: String,
    salt: String,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    pub(in crate::emulator) fn of(password: &Secret) -> Self {
        let text = scram_sha_256(password.expose().as_bytes());
        // SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>
        let parts: Vec<&str> = text.split(['$', ':']).collect();
        let part = |place: usize| parts.get(place).copied().unwrap_or_default();
        let key = |place| BASE64.decode(part(place)).unwrap_or_default();
        Self {
            iterations: part(1).to_owned(),
            salt: part(2).to_owned(),
            stored_key: key(3),
            server_key: key(4),
            text: Secret::new(text),
        }
    }

    /// Returns a verifier that no password fits, for roles that do not exist. To a client they must look like a wrong
    /// password.
    pub(in crate::emulator) fn mock() -> Self {
        Self::of(&Secret::new(uuid::Uuid::new_v4().to_string()))
    }

    /// Returns the verifier in the form that Postgres stores.
    pub(in crate::emulator) fn expose(&self) -> &str {
        self.text.expose()
    }
}

// The keys are not shown: they would be enough to impersonate the server.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

/// The reason for which a client is not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::emulator) enum Denied {
    /// The client does not know the password.
    WrongPassword,
    /// The client does not follow the SCRAM protocol.
    Violation,
}

/// An exchange whose first message has been answered.
#[derive(Debug)]
pub(in crate::emulator) struct Exchange<'a> {
    verifier: &'a Verifier,
    nonce: String,
    /// Value that the client's `c=` must have.
    binding: Vec<u8>,
    client_first: String,
    server_first: String,
}

impl<'a> Exchange<'a> {
    /// Reads the client's first message. `certificate` is the hash of the server's certificate, for channel binding.
    pub(in crate::emulator) fn begin(
        verifier: &'a Verifier,
        mechanism: &str,
        message: &str,
        certificate: &[u8],
    ) -> Result<Self, Denied> {
        let (flag, rest) = message.split_once(',').ok_or(Denied::Violation)?;
        let (identity, bare) = rest.split_once(',').ok_or(Denied::Violation)?;
        let bound = match (mechanism, flag) {
            (PLUS, "p=tls-server-end-point") => certificate,
            (PLAIN, "n") => &[],
            // `y` claims that the server does not support channel binding. It has just offered it, so an attacker may
            // sit between the two.
            _ => return Err(Denied::Violation),
        };
        let client_nonce = attribute(bare, "r=").ok_or(Denied::Violation)?;
        let nonce = format!("{client_nonce}{}", uuid::Uuid::new_v4().simple());
        let server_first = format!("r={nonce},s={},i={}", verifier.salt, verifier.iterations);
        let header = format!("{flag},{identity},");
        Ok(Self {
            verifier,
            nonce,
            binding: [header.as_bytes(), bound].concat(),
            client_first: bare.to_owned(),
            server_first,
        })
    }

    /// Returns the answer to the client's first message.
    pub(in crate::emulator) fn answer(&self) -> &str {
        &self.server_first
    }

    /// Checks the client's proof. Returns the server's own proof.
    pub(in crate::emulator) fn finish(&self, message: &str) -> Result<String, Denied> {
        let (unproven, proof) = message.rsplit_once(",p=").ok_or(Denied::Violation)?;
        let binding = attribute(unproven, "c=").and_then(|text| BASE64.decode(text).ok());
        if binding.as_ref() != Some(&self.binding) || attribute(unproven, "r=") != Some(&self.nonce)
        {
            return Err(Denied::Violation);
        }
        let proof = BASE64.decode(proof).map_err(|_| Denied::Violation)?;
        let said = format!("{},{},{unproven}", self.client_first, self.server_first);
        let signature = mac(&self.verifier.stored_key, &said);
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        if proof.len() != signature.len()
            || Sha256::digest(&client_key).as_slice() != self.verifier.stored_key
        {
            return Err(Denied::WrongPassword);
        }
        Ok(format!(
            "v={}",
            BASE64.encode(mac(&self.verifier.server_key, &said))
        ))
    }
}

/// Returns the value of an attribute such as `r=` in a message.
fn attribute<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    message.split(',').find_map(|part| part.strip_prefix(name))
}

fn mac(key: &[u8], message: &str) -> Vec<u8> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac.chain_update(message).finalize().into_bytes().to_vec(),
        Err(_) => Vec::new(), // HMAC takes keys of any length
    }
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    use super::*;

    fn exchange(password: &str, mechanism: &str, binding: ChannelBinding) -> Result<(), Denied> {
        let verifier = Verifier::of(&Secret::new("right"));
        let mut client = ScramSha256::new(password.as_bytes(), binding);
        let said = |client: &ScramSha256| String::from_utf8(client.message().to_vec()).unwrap();
        let exchange = Exchange::begin(&verifier, mechanism, &said(&client), b"certificate")?;
        client.update(exchange.answer().as_bytes()).unwrap();
        let proof = exchange.finish(&said(&client))?;
        client
            .finish(proof.as_bytes())
            .expect("the server knows the password too");
        Ok(())
    }

    #[test]
    fn a_right_password_passes_and_a_wrong_one_does_not() {
        let bound = || ChannelBinding::tls_server_end_point(b"certificate".to_vec());
        assert_eq!(
            exchange("right", PLAIN, ChannelBinding::unsupported()),
            Ok(())
        );
        assert_eq!(exchange("right", PLUS, bound()), Ok(()));
        assert_eq!(
            exchange("wrong", PLAIN, ChannelBinding::unsupported()),
            Err(Denied::WrongPassword)
        );
        assert_eq!(exchange("wrong", PLUS, bound()), Err(Denied::WrongPassword));
    }

    #[test]
    fn debug_shows_nothing_of_it() {
        let verifier = Verifier::of(&Secret::new("right"));
        assert_eq!(format!("{verifier:?}"), "Verifier(..)");
    }

    #[test]
    fn another_certificate_and_a_downgrade_are_violations() {
        let other = ChannelBinding::tls_server_end_point(b"another certificate".to_vec());
        assert_eq!(exchange("right", PLUS, other), Err(Denied::Violation));
        assert_eq!(
            exchange("right", PLAIN, ChannelBinding::unrequested()),
            Err(Denied::Violation)
        );
        for nonsense in ["", "n", "n,,", "n,,n=,x=1", "p=tls-unique,,n=,r=1"] {
            let verifier = Verifier::mock();
            assert!(
                Exchange::begin(&verifier, PLAIN, nonsense, b"").is_err(),
                "{nonsense:?}"
            );
        }
    }
}
