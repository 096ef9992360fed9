//! Connection details, passwords included.

use serde::Deserialize;

use super::tolerant;
use crate::model::secret::Secret;

/// The connection details of a role and its database.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConnectionDetails {
    /// The parameters. The URI beside them is not read: it names the direct host and contains the password.
    pub connection_parameters: ConnectionParameters,
}

/// The parameters of a connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConnectionParameters {
    /// Name of the database.
    pub database: String,
    /// Password of the role.
    pub password: Secret,
    /// Role to log in as.
    pub role: String,
    /// The direct host; empty if Neon does not say.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub host: String,
    /// The host with the pooler; empty if Neon does not say.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub pooler_host: String,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct ConnectionUriAnswer {
    pub(in crate::neon) uri: Secret,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct PasswordAnswer {
    pub(in crate::neon) password: Secret,
}

/// The answer to a reset, which has the password inside the role.
#[derive(Debug, Deserialize)]
pub(in crate::neon) struct ResetAnswer {
    pub(in crate::neon) role: PasswordAnswer,
}
