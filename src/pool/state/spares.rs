//! The spares of a pool: connections that log in once the wake is over.

use tokio::sync::oneshot::{self, error::TryRecvError};

use super::State;
use crate::{connection::dial::opened::Opened, limits::budget::PermitId, model::config::Config};

/// One spare, which may still be opening.
pub(in crate::pool) struct Spare {
    pub(in crate::pool) permit_id: PermitId,
    /// Receives the connection once it is open. Dropping it ends the opening, or closes the connection.
    pub(in crate::pool) opened: oneshot::Receiver<Opened>,
}

/// The spares of a pool, those that could not be opened included.
#[derive(Default)]
pub(in crate::pool) struct Spares(Vec<Spare>);

impl State {
    /// Returns whether one more spare is due: a caller in the queue lacks a connection, besides those on the way, and
    /// the compute is being woken.
    pub(in crate::pool) fn is_spare_due(&mut self, config: &Config) -> bool {
        // Another Postgres than Neon's starts a process for each socket, and does not sleep.
        let is_wanted = self.endpoint.is_neon && self.believes_asleep();
        if !is_wanted || self.retired || self.rare.forbidden.is_some() {
            return false;
        }
        let coming = self.dialing + self.spares.as_ref().map_or(0, |it| it.0.len());
        if self.open.len() + coming >= self.limit(config) {
            return false; // before the search of the queue, which may be long
        }
        self.waiters.retain(|waiter| !waiter.sender.is_closed());
        self.waiters.len() > coming + self.settling
    }

    pub(in crate::pool) fn add_spare(&mut self, spare: Spare) {
        self.spares.get_or_insert_default().0.push(spare);
    }

    /// Removes and returns the spare that was added last.
    pub(in crate::pool) fn pop_spare(&mut self) -> Option<Spare> {
        self.spares.as_mut()?.0.pop()
    }

    /// Removes and returns spares that are open, `most` at most.
    pub(in crate::pool) fn take_open_spares(&mut self, most: usize) -> Vec<Opened> {
        let mut open = Vec::new();
        if let Some(spares) = &mut self.spares {
            spares.0.retain_mut(|spare| {
                if open.len() == most {
                    return true;
                }
                let opened = spare.opened.try_recv();
                let is_opening = matches!(opened, Err(TryRecvError::Empty));
                open.extend(opened);
                is_opening
            });
        }
        open
    }

    /// Removes and returns all spares if none will be used: no attempt is in progress after which one may be due, or
    /// no caller waits. `due`: the number of attempts that are about to start.
    pub(in crate::pool) fn take_useless_spares(&mut self, due: usize) -> Option<Box<Spares>> {
        let has_use = if self.believes_asleep() {
            due == 0 // a wake that is about to start has none yet
        } else {
            !self.waiters.is_empty()
        };
        if has_use && self.dialing > 0 {
            return None;
        }
        self.spares.take()
    }
}
