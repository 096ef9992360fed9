//! Files of steps: their names, as refinery and sqlx write them, and the markers in their first lines.

use std::{fs, path::Path, time::Duration};

use super::step::{Checksum, from_hex};

/// A file's name, as far as it is about its step.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum FileName {
    /// The file is the step's text.
    Step { version: i64, name: String },
    /// The file undoes the step of that version.
    Down { version: i64 },
}

/// The markers of a file.
#[allow(
    clippy::option_option,
    reason = "no limit of its own, no limit at all, or one"
)]
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Markers {
    pub(super) outside: bool,
    pub(super) contract: bool,
    pub(super) accepted: Vec<Checksum>,
    pub(super) lock_timeout: Option<Option<Duration>>,
    pub(super) statement_timeout: Option<Option<Duration>>,
}

/// Reads the name of a file.
pub(super) fn parse_name(file: &str) -> Result<FileName, String> {
    let says = |why: &str| Err(format!("the file {file:?} is no step: {why}"));
    if Path::new(file).extension().is_some_and(|it| it == "rs") {
        return says("it is not SQL; add a step of code with `Schema::run`");
    }
    let Some(stem) = file.strip_suffix(".sql") else {
        return says("its name does not end in .sql");
    };
    let (stem, is_down) = match stem.strip_suffix(".down") {
        Some(stem) => (stem, true),
        None => (stem.strip_suffix(".up").unwrap_or(stem), false),
    };
    if stem.starts_with('U') && stem[1..].starts_with(|it: char| it.is_ascii_digit()) {
        return says("steps are applied in order, so it needs a version: begin its name with V");
    }
    let numbered = stem.strip_prefix('V').unwrap_or(stem);
    let rest = numbered.trim_start_matches(|it: char| it.is_ascii_digit());
    let digits = &numbered[..numbered.len() - rest.len()];
    let separator = if numbered.len() < stem.len() {
        "__"
    } else {
        "_"
    };
    let name = match rest.strip_prefix(separator) {
        Some(name) if !digits.is_empty() && !name.is_empty() => name,
        _ => {
            return says(
                "name it V3__add_notes.sql as for refinery, or 0003_add_notes.sql as for sqlx",
            );
        }
    };
    let version = match digits.parse() {
        Ok(version) if version > 0 => version,
        _ => return says("its version must be between 1 and 9223372036854775807"),
    };
    if is_down {
        return Ok(FileName::Down { version });
    }
    let name = name.replace('_', " ");
    Ok(FileName::Step { version, name })
}

/// Reads the markers in the comment lines at the beginning of a text.
pub(super) fn parse_markers(sql: &str) -> Result<Markers, String> {
    let mut markers = Markers::default();
    for line in sql.lines().map(str::trim) {
        let Some(comment) = line.strip_prefix("--") else {
            if line.is_empty() {
                continue;
            }
            break;
        };
        let comment = comment.trim();
        if comment == "no-transaction" {
            markers.outside = true;
        } else if let Some(marker) = comment.strip_prefix("tenantry:") {
            read_marker(marker.trim(), &mut markers)?;
        }
    }
    Ok(markers)
}

fn read_marker(marker: &str, markers: &mut Markers) -> Result<(), String> {
    let (word, value) = marker.split_once(' ').unwrap_or((marker, ""));
    let value = value.trim();
    match word {
        "outside-transaction" if value.is_empty() => markers.outside = true,
        "contract" if value.is_empty() => markers.contract = true,
        "accept" => markers.accepted.push(from_hex(value).ok_or_else(|| {
            format!("the marker {marker:?} needs a checksum of 64 hexadecimal digits")
        })?),
        "lock-timeout" => markers.lock_timeout = Some(read_limit(marker, value)?),
        "statement-timeout" => markers.statement_timeout = Some(read_limit(marker, value)?),
        _ => {
            return Err(format!(
                "the marker {marker:?} is not known; there are outside-transaction, contract, accept CHECKSUM, \
                 lock-timeout TIME and statement-timeout TIME"
            ));
        }
    }
    Ok(())
}

fn read_limit(marker: &str, value: &str) -> Result<Option<Duration>, String> {
    if value == "none" {
        return Ok(None);
    }
    let limit = humantime::parse_duration(value);
    limit
        .map(Some)
        .map_err(|_| format!("the marker {marker:?} needs a time, such as 30min, or none"))
}

/// Returns name and text of each `.sql` file in the folder at `path`, but for hidden ones.
pub(super) fn read_folder(path: &Path) -> Result<Vec<(String, String)>, String> {
    let failed = |at: &Path, err: &dyn std::fmt::Display| format!("{}: {err}", at.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|err| failed(path, &err))? {
        let entry = entry.map_err(|err| failed(path, &err))?.path();
        let name = entry.file_name().unwrap_or_default();
        let Some(name) = name.to_str() else {
            continue;
        };
        if name.starts_with('.')
            || entry.extension().is_none_or(|it| it != "sql")
            || !entry.is_file()
        {
            continue;
        }
        let bytes = fs::read(&entry).map_err(|err| failed(&entry, &err))?;
        let text = String::from_utf8(bytes).map_err(|err| failed(&entry, &err))?;
        files.push((name.to_owned(), text));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_refinery_and_of_sqlx_are_read() {
        let max = "9223372036854775807_x.sql";
        for (file, version, name) in [
            ("V3__notes_by_day.sql", 3, "notes by day"),
            ("V03__a.sql", 3, "a"),
            ("0003_notes_by_day.sql", 3, "notes by day"),
            ("20261130120000_notes.sql", 20_261_130_120_000, "notes"),
            ("3_x.up.sql", 3, "x"),
            (max, i64::MAX, "x"),
        ] {
            let name = name.to_owned();
            assert_eq!(
                parse_name(file),
                Ok(FileName::Step { version, name }),
                "{file}"
            );
        }
        assert_eq!(
            parse_name("3_x.down.sql"),
            Ok(FileName::Down { version: 3 })
        );
    }

    #[test]
    fn a_name_without_a_version_in_order_is_refused_and_named() {
        for (file, why) in [
            ("U3__x.sql", "begin its name with V"),
            ("V1.2__x.sql", "name it"),
            ("V3__x.rs", "Schema::run"),
            ("V3_x.sql", "name it"),
            ("notes.sql", "name it"),
            ("3.sql", "name it"),
            ("V3__.sql", "name it"),
            ("0_x.sql", "between 1 and"),
            ("9223372036854775808_x.sql", "between 1 and"),
            ("3_x.txt", "end in .sql"),
        ] {
            let err = parse_name(file).unwrap_err();
            assert!(err.contains(file) && err.contains(why), "{file}: {err}");
        }
    }

    #[test]
    fn markers_stand_in_the_comments_before_the_first_statement() {
        let hex = "ab".repeat(32);
        let sql = format!(
            "\n-- a comment\n--no-transaction\n-- tenantry: accept {hex}\n-- tenantry: statement-timeout 30min\n\
             -- tenantry: lock-timeout none\n-- tenantry: contract\nSELECT 1;\n-- tenantry: nonsense"
        );
        let markers = Markers {
            outside: true,
            contract: true,
            accepted: vec![[0xab; 32]],
            lock_timeout: Some(None),
            statement_timeout: Some(Some(Duration::from_secs(1800))),
        };
        assert_eq!(parse_markers(&sql), Ok(markers));
        assert_eq!(
            parse_markers("SELECT 1 -- no-transaction"),
            Ok(Markers::default())
        );
        for wrong in [
            "accept ab",
            "lock-timeout soon",
            "contract soon",
            "outside-transaction now",
        ] {
            let err = parse_markers(&format!("-- tenantry: {wrong}\nSELECT 1")).unwrap_err();
            assert!(err.contains(wrong), "{err}");
        }
    }
}
