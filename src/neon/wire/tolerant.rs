//! Reading answers that are not quite as described.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// Reads `null` as the default. Serde's own `default` applies only to a missing field.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads an unreadable value as the default, so that the rest of the answer can be read.
pub(super) fn if_readable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// Reads a text, and any other value as its JSON; `null` is the empty text.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Value::deserialize(deserializer).map(as_text)
}

/// Reads texts by their names, each like a [`text`]. A value that is not an object has none.
pub(super) fn texts<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let named: BTreeMap<String, Value> = if_readable(deserializer)?;
    let texts = named
        .into_iter()
        .map(|(name, value)| (name, as_text(value)));
    Ok(texts.collect())
}

fn as_text(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            other.to_string()
        }
    }
}

/// Reads a count. A fraction is cut off. Any other value is read as 0, so that the rest of the answer can be read.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value
        .as_u64()
        .or_else(|| cut_off(&value)?.try_into().ok())
        .unwrap_or_default())
}

/// Reads a whole number, which may be negative, like a [`count`].
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value
        .as_i64()
        .or_else(|| cut_off(&value))
        .unwrap_or_default())
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the truncation is intended, and the cast saturates"
)]
fn cut_off(value: &Value) -> Option<i64> {
    value.as_f64().map(|number| number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_is_read_from_whatever_stands_there() {
        let written = json!({ "a": "x", "b": 7, "c": null, "d": [true] });
        let read = [("a", "x"), ("b", "7"), ("c", ""), ("d", "[true]")];
        let read = read.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(texts(&written).unwrap(), BTreeMap::from(read));
        assert_eq!(texts(&json!("x")).unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_count_is_read_from_whatever_stands_there() {
        for (written, read) in [
            (json!(7), 7),
            (json!(u64::MAX), u64::MAX),
            (json!(7.9), 7),
            (json!(-7), 0),
            (json!(1e300), i64::MAX.unsigned_abs()),
            (json!(null), 0),
            (json!("7"), 0),
        ] {
            assert_eq!(count(&written).unwrap(), read, "{written}");
        }
        assert_eq!(whole(&json!(-1.0)).unwrap(), -1);
        assert_eq!(whole(&json!(null)).unwrap(), 0);
    }
}
