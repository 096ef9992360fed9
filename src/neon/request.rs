//! A route of the API, and one call of it.

use std::borrow::Cow;

use reqwest::Method;
use serde_json::Value;
use url::Url;

use crate::model::error::{Error, ErrorKind};

/// Longest id: the pattern of Neon's ids is `^[a-z0-9-]{1,60}$`.
const LONGEST_ID: usize = 60;
/// Longest name of a role: Postgres truncates a longer one.
const LONGEST_NAME: usize = 63;

/// One operation of the API, as in Neon's description.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: Method,
    /// The description's `operationId`.
    pub(super) operation: &'static str,
    /// The path, with a `{name}` for each parameter.
    pub(super) template: &'static str,
}

impl Route {
    pub(super) const fn get(operation: &'static str, template: &'static str) -> Self {
        Self {
            method: Method::GET,
            operation,
            template,
        }
    }

    pub(super) const fn post(operation: &'static str, template: &'static str) -> Self {
        Self {
            method: Method::POST,
            operation,
            template,
        }
    }

    pub(super) const fn patch(operation: &'static str, template: &'static str) -> Self {
        Self {
            method: Method::PATCH,
            operation,
            template,
        }
    }

    pub(super) const fn delete(operation: &'static str, template: &'static str) -> Self {
        Self {
            method: Method::DELETE,
            operation,
            template,
        }
    }
}

/// One call: a route, the parameters of its path, its query and its body.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) route: &'static Route,
    parameters: Vec<&'a str>,
    pub(super) query: Vec<(&'static str, Cow<'a, str>)>,
    pub(super) body: Option<Value>,
}

impl<'a> Call<'a> {
    /// Creates a call of `route`, whose path takes `parameters` in this order.
    pub(super) fn new(route: &'static Route, parameters: &[&'a str]) -> Self {
        Self {
            route,
            parameters: parameters.to_vec(),
            query: Vec::new(),
            body: None,
        }
    }

    pub(super) fn query(
        mut self,
        key: &'static str,
        value: impl Into<Option<Cow<'a, str>>>,
    ) -> Self {
        self.query.extend(value.into().map(|value| (key, value)));
        self
    }

    pub(super) fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Returns the project in the call's path, if there is one.
    pub(super) fn project(&self) -> Option<&'a str> {
        self.segments()
            .find_map(|(name, value)| (name == "{project_id}").then_some(value))
    }

    /// Returns the URL of the call below `base`.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if a parameter would make it the URL of another resource.
    pub(super) fn url(&self, base: &Url) -> Result<Url, Error> {
        for (name, value) in self.segments() {
            check(name, value)?;
        }
        let mut url = base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .pop_if_empty()
                .extend(self.segments().map(|(_, value)| value));
        }
        Ok(url)
    }

    /// Returns each segment of the path as it is in the template, and as it is sent.
    fn segments(&self) -> impl Iterator<Item = (&'static str, &'a str)> {
        let mut parameters = self.parameters.iter();
        let template = self.route.template.split('/').skip(1);
        template.map(move |name| {
            let value = name
                .starts_with('{')
                .then(|| parameters.next().copied().unwrap_or_default());
            (name, value.unwrap_or(name))
        })
    }
}

/// Checks one parameter of a path. An empty or strange id would address another resource. A role's name may hold nearly
/// any character, because the URL escapes it; a name that a path cannot hold even so is refused.
fn check(name: &str, value: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let (fits, what) = if name == "{role_name}" {
        let dots = matches!(value, "" | "." | "..");
        let fits = !dots && value.len() <= LONGEST_NAME && !value.contains(char::is_control);
        (fits, "a name that a role can have")
    } else {
        let fits = (1..=LONGEST_ID).contains(&value.len()) && value.bytes().all(plain);
        (fits, "an id of neon's")
    };
    if fits {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Refused,
        format!("{value:?} is not {what}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    static ROLE: Route = Route::get("x", "/projects/{project_id}/roles/{role_name}/reveal");

    fn url(parameters: &[&str]) -> Result<String, Error> {
        let base = Url::parse("https://neon.tech/api/v2").unwrap();
        Call::new(&ROLE, parameters).url(&base).map(String::from)
    }

    #[test]
    fn parameters_go_into_the_path_in_their_order() {
        let expected = "https://neon.tech/api/v2/projects/p-1/roles/app/reveal";
        assert_eq!(url(&["p-1", "app"]).unwrap(), expected);
        assert_eq!(Call::new(&ROLE, &["p-1", "app"]).project(), Some("p-1"));
    }

    #[test]
    fn a_role_stays_one_segment_whatever_its_name_is() {
        for (role, sent) in [
            ("a/b", "a%2Fb"),
            ("a?b#c", "a%3Fb%23c"),
            ("%2e%2e", "%252e%252e"),
            ("a b", "a%20b"),
            ("a\\b", "a%5Cb"),
            ("é", "%C3%A9"),
            ("...", "..."),
        ] {
            let expected = format!("https://neon.tech/api/v2/projects/p-1/roles/{sent}/reveal");
            assert_eq!(url(&["p-1", role]).unwrap(), expected);
        }
        for role in ["", ".", "..", "a\tb", "a\nb", &"x".repeat(64)] {
            let err = url(&["p-1", role]).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Refused, "{role:?}");
        }
    }

    #[test]
    fn a_parameter_that_is_missing_or_strange_is_refused() {
        for id in ["", ".", "..", "a/b", "a%b", "ä", &"x".repeat(61)] {
            assert!(url(&[id, "app"]).is_err(), "{id:?}");
        }
        assert!(url(&["p-1"]).is_err());
    }
}
