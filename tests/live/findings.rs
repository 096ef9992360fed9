//! Differences, each as a line that can be pasted into an issue.

use std::fmt::Display;

use tenantry::BoxError;

use crate::cold_resume::account::{error_chain, say};

/// Longest part of a line.
const LONGEST: usize = 400;

/// The answers to one claim after the other.
#[derive(Default)]
pub(crate) struct Findings {
    claim: &'static str,
    secrets: Vec<String>,
    asked: usize,
    differences: usize,
}

impl Findings {
    /// Goes on to a claim.
    pub(crate) fn begin(&mut self, claim: &'static str) {
        self.claim = claim;
    }

    /// Never shows `secret`.
    pub(crate) fn hide(&mut self, secret: impl Into<String>) {
        self.secrets.push(secret.into());
    }

    /// Compares the emulator's claim with Neon's answer.
    pub(crate) fn expect_eq(&mut self, what: &str, expected: impl Display, seen: impl Display) {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        self.asked += 1;
        if expected != seen {
            self.differences += 1;
            let (expected, seen) = (self.part(&expected), self.part(&seen));
            say(&format!(
                "difference: {}: {what} | expected: {expected} | seen: {seen}",
                self.claim
            ));
        }
    }

    /// The same for something that is so or not.
    pub(crate) fn expect(&mut self, what: &str, holds: bool, seen: impl Display) {
        if holds {
            self.asked += 1;
        } else {
            self.expect_eq(what, "that it is so", seen);
        }
    }

    /// Says what is neither expected nor a difference.
    pub(crate) fn remark(&self, text: &str) {
        say(&format!("note: {}: {}", self.claim, self.part(text)));
    }

    /// A claim that could not be asked is a difference too.
    pub(crate) fn record_outcome(&mut self, ended: Result<(), BoxError>) {
        if let Err(err) = ended {
            self.expect_eq("it can be asked", "an answer", error_chain(&*err));
        }
    }

    /// Prints how many there are. Whether there are none.
    pub(crate) fn print_summary(&self) -> bool {
        let Self {
            asked, differences, ..
        } = self;
        say(&format!(
            "live: {asked} questions, {differences} differences"
        ));
        *differences == 0
    }

    /// A part of a line: short, without line breaks and secrets.
    fn part(&self, text: &str) -> String {
        let mut text = text.replace(['\n', '\r'], " ");
        for secret in &self.secrets {
            text = text.replace(secret, "(secret)");
        }
        text.chars().take(LONGEST).collect()
    }
}
