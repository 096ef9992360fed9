//! The application's schema as a value.

use std::{borrow::Cow, collections::BTreeMap, fmt, future::Future, path::Path, time::Duration};

use super::{
    access::OnAccess,
    checked::CheckedSchema,
    client::MigrationClient,
    files::{self, FileName},
    session::{Moment, Moments},
    step::{Step, Work, latest, to_hex},
};
use crate::model::{config::InvalidConfig, error::BoxError, tenant::TenantId};

/// Name of the one step of a schema that another runner owns.
const MANAGED: &str = "another runner";

/// The application's schema: an ordered list of steps that each tenant's database goes through.
///
/// [`RouterBuilder::schema`](crate::RouterBuilder::schema) gives it to a router, and
/// [`TenantRouter::migrate`](crate::TenantRouter::migrate) brings a tenant's database up to date. The manual's page
/// about [schema changes](crate::manual::schema) has the details. Nothing is checked before
/// [`check`](Self::check) or the router's `build`, and no method panics.
///
/// ```
/// use tenantry::Schema;
///
/// let schema = Schema::new()
///     .step(1, "notes", "CREATE TABLE notes (id bigserial PRIMARY KEY, day date, text text)")
///     .step(2, "notes by day", "CREATE INDEX CONCURRENTLY notes_by_day ON notes (day)")
///     .outside_transaction()
///     .run(3, "fill in days", |client| async move {
///         let fill = "UPDATE notes SET day = current_date WHERE id IN
///                     (SELECT id FROM notes WHERE day IS NULL LIMIT 1000)";
///         while client.execute(fill, &[]).await? > 0 {}
///         Ok(())
///     });
/// schema.check()?;
/// assert_eq!(schema.latest(), 3);
/// # Ok::<_, tenantry::InvalidConfig>(())
/// ```
#[derive(Clone)]
#[must_use = "a schema does nothing until a router has it"]
pub struct Schema {
    pub(super) steps: Vec<Step>,
    pub(super) settings: Settings,
    /// The first mistake that a method could not report.
    pub(super) fault: Option<String>,
    pub(super) accepted: Vec<(i64, String)>,
    pub(super) released: Option<Cow<'static, str>>,
}

/// The settings that need no further check than their limits.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) baseline: Baseline,
    pub(super) out_of_order: bool,
    /// The lowest version with which the program works; `None` for the latest.
    pub(super) requires: Option<i64>,
    pub(super) on_access: OnAccess,
    pub(super) lock_timeout: Duration,
    pub(super) statement_timeout: Duration,
    pub(super) timeout: Duration,
    pub(super) moments: Moments,
}

/// The steps that a database has which was never migrated by tenantry.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Baseline {
    /// None.
    #[default]
    Nothing,
    /// All steps up to this version, if the database has any table.
    At(i64),
    /// Those that refinery has recorded in the table `refinery_schema_history`.
    Refinery,
    /// Those that sqlx has recorded in the table `_sqlx_migrations`.
    Sqlx,
}

impl Default for Schema {
    fn default() -> Self {
        Self::new()
    }
}

impl Schema {
    /// Creates a schema without steps.
    pub fn new() -> Self {
        Self {
            steps: Vec::new(),
            settings: Settings {
                baseline: Baseline::Nothing,
                out_of_order: false,
                requires: None,
                on_access: OnAccess::default(),
                lock_timeout: Duration::from_secs(2),
                statement_timeout: Duration::from_secs(300),
                timeout: Duration::from_secs(3600),
                moments: Moments::default(),
            },
            fault: None,
            accepted: Vec::new(),
            released: None,
        }
    }

    /// Adds a step of SQL. It runs in one transaction with its row in the history: it is applied and recorded, or
    /// neither. Versions are positive and ascend; numbers from one and timestamps both work.
    pub fn step(
        mut self,
        version: i64,
        name: impl Into<String>,
        sql: impl Into<Cow<'static, str>>,
    ) -> Self {
        let work = Work::Sql(sql.into());
        self.steps.push(Step::new(version, name.into(), work));
        self
    }

    /// Adds a step of code, such as a backfill in batches. It may run again until it returns `Ok`; then it is recorded.
    ///
    /// The code gets a connection past the pooler. A pooled connection cannot take its place:
    ///
    /// ```compile_fail
    /// async fn fill(client: tenantry::TenantClient) -> Result<(), tenantry::BoxError> {
    ///     Ok(())
    /// }
    /// let schema = tenantry::Schema::new().run(1, "fill", fill);
    /// ```
    pub fn run<Fut>(
        mut self,
        version: i64,
        name: impl Into<String>,
        work: impl Fn(MigrationClient) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let step = Step::new(version, name.into(), Work::code(work));
        self.steps.push(step);
        self
    }

    /// Adds the steps of files, each given by its name and its text. Both `V3__notes_by_day.sql` (refinery) and
    /// `0003_notes_by_day.sql` (sqlx) name version 3. They are added in the order of their versions.
    ///
    /// ```
    /// # use tenantry::Schema;
    /// let schema = Schema::new().files([
    ///     // With files of your own: ("V1__notes.sql", include_str!("../migrations/V1__notes.sql")),
    ///     ("V1__notes.sql", "CREATE TABLE notes (id bigserial PRIMARY KEY, day date)"),
    ///     (
    ///         "V2__notes_by_day.sql",
    ///         "-- no-transaction\nCREATE INDEX CONCURRENTLY notes_by_day ON notes (day)",
    ///     ),
    /// ]);
    /// # schema.check().unwrap();
    /// ```
    pub fn files<N: AsRef<str>, T: Into<Cow<'static, str>>>(
        mut self,
        files: impl IntoIterator<Item = (N, T)>,
    ) -> Self {
        let files = files.into_iter();
        let files = files.map(|(name, text)| {
            let text: Cow<'static, str> = text.into();
            (name.as_ref().to_owned(), text)
        });
        match steps_of(files) {
            Ok(steps) => {
                self.steps.extend(steps);
                self
            }
            Err(fault) => self.with_fault(fault),
        }
    }

    /// Creates a schema of the `.sql` files in a folder, which are read now.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or its name or a marker in it is wrong.
    pub fn from_dir(path: impl AsRef<Path>) -> Result<Self, InvalidConfig> {
        let files = files::read_folder(path.as_ref()).map_err(InvalidConfig::new)?;
        let files = files.into_iter().map(|(name, text)| (name, text.into()));
        let mut schema = Self::new();
        schema.steps = steps_of(files).map_err(InvalidConfig::new)?;
        Ok(schema)
    }

    /// Creates a schema whose steps another runner owns: refinery, Atlas or your own. `work` runs on databases that are
    /// below `version`; raise that with each new step. tenantry owns the lock, the wake, the version and the failure.
    ///
    /// ```
    /// use tenantry::Schema;
    ///
    /// let schema = Schema::managed(7, |mut client| async move {
    ///     // refinery: `migrations::runner().run_async(&mut *client).await?;`
    ///     let transaction = client.transaction().await?;
    ///     transaction.batch_execute("CREATE TABLE IF NOT EXISTS notes (id bigserial)").await?;
    ///     transaction.commit().await?;
    ///     Ok(())
    /// });
    /// # schema.check().unwrap();
    /// ```
    pub fn managed<Fut>(
        version: i64,
        work: impl Fn(MigrationClient) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self::new().run(version, MANAGED, work)
    }

    /// Runs the step that was added last outside of a transaction, for `CREATE INDEX CONCURRENTLY`. It must be one
    /// statement. If it is interrupted it runs again, and an invalid index that it left behind is dropped first. So
    /// write `IF EXISTS` or `IF NOT EXISTS` where the statement builds no index.
    pub fn outside_transaction(self) -> Self {
        self.of_last("outside_transaction", |step| step.outside = true)
    }

    /// Holds the step that was added last back, because it takes away what earlier releases of the application need,
    /// such as a column. No access and no [`migrate`](crate::TenantRouter::migrate) applies it, nor is a new database
    /// born with it: only a campaign that [names it](crate::fleet::Campaign::contract) does, once every process
    /// [requires](Self::requires) the step before it.
    ///
    /// Only steps of this kind may follow it. When its campaign has ended, remove `contract` in your next release:
    /// then the step reaches the tenants that were not visited.
    ///
    /// ```
    /// # use tenantry::Schema;
    /// let schema = Schema::new()
    ///     .step(1, "notes", "CREATE TABLE notes (text text, day text)")
    ///     .step(2, "date", "ALTER TABLE notes ADD COLUMN date date")
    ///     .step(3, "drop day", "ALTER TABLE notes DROP COLUMN day")
    ///     .contract();
    /// schema.check()?;
    /// assert_eq!(schema.latest(), 2);
    /// # Ok::<_, tenantry::InvalidConfig>(())
    /// ```
    pub fn contract(self) -> Self {
        self.of_last("contract", |step| step.contract = true)
    }

    /// Sets the longest wait for a lock of the step that was added last, in place of
    /// [`lock_timeout`](Self::lock_timeout); `None` for no limit.
    pub fn step_lock_timeout(self, limit: impl Into<Option<Duration>>) -> Self {
        let limit = limit.into();
        self.of_last("step_lock_timeout", |step| step.lock_timeout = Some(limit))
    }

    /// Sets the longest run of one statement of the step that was added last, in place of
    /// [`statement_timeout`](Self::statement_timeout); `None` for no limit but [`timeout`](Self::timeout).
    pub fn step_statement_timeout(self, limit: impl Into<Option<Duration>>) -> Self {
        let limit = limit.into();
        let set = |step: &mut Step| step.statement_timeout = Some(limit);
        self.of_last("step_statement_timeout", set)
    }

    /// Sets the steps that a database has which was never migrated by tenantry. Defaults to [`Baseline::Nothing`].
    pub fn baseline(mut self, baseline: Baseline) -> Self {
        self.settings.baseline = baseline;
        self
    }

    /// Accepts databases in which the step was applied with another text, by the checksum of that text. Without this,
    /// a changed text is a divergence, and such a database is not migrated any further. The error names the checksum.
    pub fn accept(mut self, version: i64, checksum: impl Into<String>) -> Self {
        self.accepted.push((version, checksum.into()));
        self
    }

    /// Compares the steps with those that were released before, as [`to_lock`](Self::to_lock) wrote them: none may be
    /// missing or have another text. Keep that text in a file beside your steps, and write it anew with each release.
    ///
    /// ```
    /// # use tenantry::Schema;
    /// let released = Schema::new().step(1, "notes", "CREATE TABLE notes (text text)").to_lock();
    /// let changed = Schema::new().step(1, "notes", "CREATE TABLE notes (text varchar)");
    /// let err = changed.released(released).check().unwrap_err();
    /// assert!(err.to_string().contains("step 1 (\"notes\") was released with another text"));
    /// ```
    pub fn released(mut self, lock: impl Into<Cow<'static, str>>) -> Self {
        self.released = Some(lock.into());
        self
    }

    /// Applies a step that turns up below the highest applied one, as late merges bring about. By default that is a
    /// divergence.
    pub fn out_of_order(mut self) -> Self {
        self.settings.out_of_order = true;
        self
    }

    /// Sets the lowest version with which this program works; 0 if it works with a database that has no step yet.
    /// Defaults to [`latest`](Self::latest). Lower it so that an access to a tenant that has not all steps yet need not
    /// wait for the rest.
    pub fn requires(mut self, version: i64) -> Self {
        self.settings.requires = Some(version);
        self
    }

    /// Sets the effect of an access on a tenant whose schema is not current. Defaults to [`OnAccess::Migrate`].
    pub fn on_access(mut self, on_access: OnAccess) -> Self {
        self.settings.on_access = on_access;
        self
    }

    /// Sets the longest wait of a step for a lock. Defaults to 2 seconds: a step that waits for a table makes every
    /// later query on that table wait behind it. The step is tried again, five times. A step outside of a transaction
    /// has no such limit, because it would fail beside any longer transaction.
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.settings.lock_timeout = limit;
        self
    }

    /// Sets the longest run of one statement of a step. Defaults to 5 minutes. Raise it for large tables.
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.settings.statement_timeout = limit;
        self
    }

    /// Sets the longest time for one tenant: the wake, the wait for the lock and all steps together. Defaults to 1
    /// hour.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.settings.timeout = limit;
        self
    }

    /// Checks the steps, as the router's `build` does: for a test of your own.
    ///
    /// # Errors
    /// Returns an error that names the step and says what would work.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        CheckedSchema::new(self.clone()).map(drop)
    }

    /// Writes a line for each step: version, checksum, name. [`released`](Self::released) reads it.
    pub fn to_lock(&self) -> String {
        let line = |step: &Step| {
            let checksum = to_hex(&step.checksum);
            format!("{} {checksum} {}\n", step.version, step.name)
        };
        self.steps.iter().map(line).collect()
    }

    /// Returns the highest version, but for steps that are [held back](Self::contract); 0 if there is no step.
    pub fn latest(&self) -> i64 {
        latest(&self.steps)
    }

    /// Calls `reach` at each moment of a migration and waits for it, for tests that stop a process there.
    #[doc(hidden)]
    pub fn at_each_moment<Fut>(
        mut self,
        reach: impl Fn(Moment, TenantId) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.settings.moments = Moments::new(reach);
        self
    }

    fn of_last(mut self, method: &str, change: impl FnOnce(&mut Step)) -> Self {
        match self.steps.last_mut() {
            Some(step) => {
                change(step);
                self
            }
            None => self.with_fault(format!("`{method}` stands before the first step")),
        }
    }

    fn with_fault(mut self, fault: String) -> Self {
        self.fault.get_or_insert(fault);
        self
    }
}

/// Returns the steps of files, by their versions.
fn steps_of(files: impl Iterator<Item = (String, Cow<'static, str>)>) -> Result<Vec<Step>, String> {
    let (mut steps, mut downs) = (Vec::new(), BTreeMap::new());
    for (file, text) in files {
        match files::parse_name(&file)? {
            FileName::Down { version } => drop(downs.insert(version, file)),
            FileName::Step { version, name } => steps.push(step_of(&file, version, name, text)?),
        }
    }
    steps.sort_by_key(|step| step.version);
    let has_step = |version: i64| steps.iter().any(|step| step.version == version);
    match downs.iter().find(|(version, _)| !has_step(**version)) {
        Some((_, file)) => Err(format!("the file {file:?} undoes a step that is not there")),
        None => Ok(steps),
    }
}

fn step_of(
    file: &str,
    version: i64,
    name: String,
    text: Cow<'static, str>,
) -> Result<Step, String> {
    let text = match text.strip_prefix('\u{feff}') {
        Some(text) => Cow::Owned(text.to_owned()),
        None => text,
    };
    let markers = files::parse_markers(&text).map_err(|why| format!("the file {file:?}: {why}"))?;
    Ok(Step {
        outside: markers.outside,
        contract: markers.contract,
        lock_timeout: markers.lock_timeout,
        statement_timeout: markers.statement_timeout,
        accepted: markers.accepted,
        ..Step::new(version, name, Work::Sql(text))
    })
}

/// Writes the versions and names of the steps.
impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps.iter().map(|step| (step.version, &step.name));
        f.debug_map().entries(steps).finish()
    }
}
