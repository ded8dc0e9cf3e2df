//! Several statements that go to `SQLite`'s thread in one step.

use sqlx::error::BoxDynError;
use sqlx::sqlite::{Sqlite, SqliteArguments};
use sqlx::{Arguments as _, AssertSqlSafe, Encode, SqliteConnection, Type};

use crate::ports::store::StoreError;

/// Statements with their values, and how many rows they have to touch.
///
/// The text is made of constant pieces only, so it has few forms, and each is
/// prepared once.
pub(super) struct Batch {
    sql: String,
    values: Result<SqliteArguments, BoxDynError>,
    rows: u64,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { sql: String::new(), values: Ok(SqliteArguments::default()), rows: 0 }
    }

    /// Adds a statement that touches so many rows; its values follow by [`Self::bind`].
    pub(super) fn add(&mut self, sql: &'static str, rows: u64) -> &mut Self {
        self.sql.push_str(sql);
        self.sql.push(';');
        self.rows += rows;
        self
    }

    /// Adds the value of the next `?`.
    pub(super) fn bind<'t, T: Encode<'t, Sqlite> + Type<Sqlite>>(&mut self, value: T) -> &mut Self {
        if let Ok(values) = &mut self.values
            && let Err(error) = values.add(value)
        {
            self.values = Err(error);
        }
        self
    }

    /// Carries all of it out. A statement that misses its row, as one whose
    /// epoch was overtaken would, fails the whole command.
    pub(super) async fn run(self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.sql.is_empty() {
            return Ok(());
        }
        let values = self.values.map_err(sqlx::Error::Encode)?;
        let done =
            sqlx::query_with(AssertSqlSafe(self.sql), values).execute(tx).await?.rows_affected();
        if done == self.rows {
            Ok(())
        } else {
            Err(StoreError::Corrupt { what: "row changed by somebody else" })
        }
    }
}
