//! Errors with which Postgres refuses a statement that was prepared before a schema change.
//!
//! It refuses the statement as long as the statement is prepared; behind PgBouncer, as long as the server connection
//! lasts.

/// SQLSTATE, tag of a field, and the start of the field. Messages may be translated, but names of functions are not.
const SAID: &[(&str, u8, &str)] = &[
    ("0A000", b'R', "RevalidateCachedQuery"),
    ("0A000", b'M', "cached plan must not change result type"),
    ("XX000", b'M', "cache lookup failed for type "),
    ("42704", b'M', "type with OID "),
    // The pooler and its server connection disagree about which statements are prepared.
    ("26000", b'M', "prepared statement \"PGBOUNCER_"),
    ("42P05", b'M', "prepared statement \"PGBOUNCER_"),
];

/// Returns whether `body`, the start of an error's body, is such an error.
pub(super) fn is_outdated_plan(body: &[u8]) -> bool {
    let says = |tag: u8, text: &str| {
        let mut fields = body.split(|&byte| byte == 0);
        fields.any(|field| {
            let field = field.strip_prefix(&[tag]);
            field.is_some_and(|field| field.starts_with(text.as_bytes()))
        })
    };
    SAID.iter()
        .any(|(code, tag, text)| says(b'C', code) && says(*tag, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the body of an error with those fields.
    fn body(code: &str, text: &str, routine: &str) -> Vec<u8> {
        format!("SERROR\0VERROR\0C{code}\0M{text}\0Fx.c\0L1\0R{routine}\0\0").into_bytes()
    }

    #[test]
    fn a_statement_that_is_out_of_date_is_told_from_others_of_its_code() {
        let cached = "cached plan must not change result type";
        let outdated = [
            ("0A000", cached, "RevalidateCachedQuery"),
            (
                "0A000",
                "zwischengespeicherter Plan",
                "RevalidateCachedQuery",
            ),
            (
                "XX000",
                "cache lookup failed for type 16425",
                "getTypeInputInfo",
            ),
            (
                "42704",
                "type with OID 16425 does not exist",
                "lookup_type_cache",
            ),
            (
                "26000",
                "prepared statement \"PGBOUNCER_7\" does not exist",
                "",
            ),
            (
                "42P05",
                "prepared statement \"PGBOUNCER_7\" already exists",
                "",
            ),
        ];
        for (code, text, routine) in outdated {
            assert!(
                is_outdated_plan(&body(code, text, routine)),
                "{code} {text}"
            );
        }
        let others = [
            ("0A000", "LIKE is not supported for this", "transform"),
            ("XX000", "Couldn't connect to compute node", ""),
            ("42704", "type \"mood\" does not exist", "typenameType"),
            ("26000", "prepared statement \"q1\" does not exist", ""),
            ("22000", cached, ""),
        ];
        for (code, text, routine) in others {
            assert!(
                !is_outdated_plan(&body(code, text, routine)),
                "{code} {text}"
            );
        }
    }
}
