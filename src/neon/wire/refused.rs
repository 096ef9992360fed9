//! The body of an answer that is not a success.

use serde::Deserialize;

use super::tolerant;

/// Neon's `GeneralError`, whose code is often empty. The transfer of projects returns one of the two lists instead.
#[derive(Debug, Default, Deserialize)]
pub(in crate::neon) struct RefusedBody {
    #[serde(default, deserialize_with = "tolerant::if_readable")]
    pub(in crate::neon) request_id: Option<String>,
    #[serde(default, deserialize_with = "tolerant::text")]
    pub(in crate::neon) code: String,
    #[serde(default, deserialize_with = "tolerant::text")]
    pub(in crate::neon) message: String,
    #[serde(default, deserialize_with = "tolerant::if_readable")]
    pub(in crate::neon) limits: Vec<UnmetLimit>,
    #[serde(default, deserialize_with = "tolerant::if_readable")]
    pub(in crate::neon) projects: Vec<IntegratedProject>,
}

/// A limit that the receiving organization does not meet.
#[derive(Debug, Deserialize)]
pub(in crate::neon) struct UnmetLimit {
    #[serde(default, deserialize_with = "tolerant::text")]
    pub(in crate::neon) name: String,
    #[serde(default, deserialize_with = "tolerant::text")]
    pub(in crate::neon) expected: String,
    #[serde(default, deserialize_with = "tolerant::text")]
    pub(in crate::neon) actual: String,
}

/// A project that is tied to something outside of Neon.
#[derive(Debug, Deserialize)]
pub(in crate::neon) struct IntegratedProject {
    #[serde(default, deserialize_with = "tolerant::text")]
    pub(in crate::neon) id: String,
    #[serde(default, deserialize_with = "tolerant::text")]
    pub(in crate::neon) integration: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_odd_field_does_not_lose_the_message() {
        for (field, odd) in [
            ("request_id", json!(7)),
            ("code", json!({ "a": 1 })),
            ("limits", json!("none")),
            ("limits", json!([{ "expected": 10 }, 5])),
            ("projects", json!([null])),
        ] {
            let mut body = json!({ "message": "no" });
            body[field] = odd;
            let read: RefusedBody = serde_json::from_value(body).unwrap();
            assert_eq!(read.message, "no", "{field}");
        }
        let limit: UnmetLimit = serde_json::from_value(json!({ "expected": 10 })).unwrap();
        assert_eq!(limit.expected, "10");
    }
}
