//! What people and programs read on standard output.
//!
//! Everything a command says goes through [`Out`]: text for people, one JSON value for programs with `--json`, colour
//! and progress bars only on a terminal. A reader that goes away (EPIPE) is no error: the rest is not printed, and the
//! command still finishes what it was doing.

use crate::exit::Failure;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Where a command says what it found.
pub(crate) struct Out {
    json: bool,
    /// What the program is called.
    program: String,
    colour: bool,
    terminal: bool,
    /// The first failed write. After it nothing more is printed.
    broken: RefCell<Option<io::Error>>,
}

/// What the program is called, if it is not an application of one's own.
pub(crate) const NAME: &str = "keelstone";

/// How a piece of text is meant. On a terminal a colour, elsewhere nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ink {
    Title,
    Good,
    Bad,
    Quiet,
    Value,
}

impl Out {
    /// Output for programs if `json`, else for people. `NO_COLOR` and a pipe turn colour off.
    pub(crate) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let program = NAME.to_owned();
        Self { json, program, terminal, colour: !json && takes_colour(terminal), broken: RefCell::new(None) }
    }

    /// That of the program of this name.
    pub(crate) fn of(self, program: &str) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// Whether programs read this.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// What to do next, under the name of this program. It is written down for `keelstone`, wherever that is; an application of
    /// one's own has another name.
    pub(crate) fn called(&self, next: &str) -> String {
        next.split(' ')
            .map(|word| if word == NAME { self.program.as_str() } else { word })
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Whether text may be coloured.
    pub(crate) fn has_colour(&self) -> bool {
        self.colour
    }

    /// Whether lines on standard error may be coloured.
    pub(crate) fn has_colour_on_stderr(&self) -> bool {
        !self.json && takes_colour(io::stderr().is_terminal())
    }

    /// Whether a person watches this as it is written.
    pub(crate) fn is_live(&self) -> bool {
        self.terminal && !self.json
    }

    /// Says one line to people; programs do not see it.
    pub(crate) fn say(&self, line: impl Display) {
        if !self.json {
            self.write(&format!("{line}\n"));
        }
    }

    /// A table row: a name and what it is, aligned.
    pub(crate) fn row(&self, name: &str, value: impl Display) {
        self.say(format_args!("  {} {value}", self.ink(Ink::Quiet, format_args!("{name:<18}"))));
    }

    /// Says what went wrong beside what was done.
    pub(crate) fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            self.say(format_args!("{} {warning}", self.ink(Ink::Bad, "!")));
        }
    }

    /// Gives programs one JSON value on one line; people do not see it.
    pub(crate) fn emit(&self, value: &impl Serialize) {
        if self.json {
            let line = serde_json::to_string(value).expect("output types have text keys and no failing serializers");
            self.write(&format!("{line}\n"));
        }
    }

    /// Writes text as it is, to people and programs alike.
    pub(crate) fn write(&self, text: &str) {
        let mut broken = self.broken.borrow_mut();
        if broken.is_some() {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            *broken = Some(error);
        }
    }

    /// Whether anybody can still read. Commands that only print may stop early.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.borrow().is_some()
    }

    /// Says whether all output was written. A closed pipe counts as written: its reader had enough.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        match self.broken.borrow_mut().take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::io("could not write to standard output", &error))
            }
            _ => Ok(()),
        }
    }

    /// Text in a colour, if there are colours.
    pub(crate) fn ink(&self, ink: Ink, text: impl Display) -> String {
        if !self.colour {
            return text.to_string();
        }
        let code = match ink {
            Ink::Title => "1;36",
            Ink::Good => "32",
            Ink::Bad => "1;31",
            Ink::Quiet => "2",
            Ink::Value => "36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A progress bar over `total` steps on a terminal; elsewhere one that shows nothing.
    pub(crate) fn progress(&self, what: &str, total: u64) -> ProgressBar {
        let bar = if self.is_live() && io::stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10))
        } else {
            ProgressBar::hidden()
        };
        bar.set_length(total);
        let style = ProgressStyle::with_template("  {msg} {bar:30.cyan/dim} {human_pos}/{human_len} {eta}")
            .expect("the template is a constant and valid");
        bar.set_style(style);
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// Says on standard error what whoever runs a command should know that goes on all the same: text, or one JSON object.
pub(crate) fn caution(out: &Out, warning: &str) {
    let text = match out.is_json() {
        true => serde_json::json!({ "warning": warning }).to_string(),
        false => format!("{} {warning}", out.ink(Ink::Bad, "warning:")),
    };
    // As with a failure.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says on standard error why a command failed: text, or one JSON object with `--json`.
pub(crate) fn report(out: &Out, failure: &Failure) {
    let hint = failure.hint.as_ref().map(|hint| out.called(hint));
    let text = if out.is_json() {
        let error = serde_json::json!({
            "error": {
                "code": failure.exit.name(),
                "exit": failure.exit as u8,
                "message": failure.message,
                "hint": hint,
            }
        });
        format!("{error}\n")
    } else {
        let hint = hint.map_or_else(String::new, |hint| format!("  {hint}\n"));
        format!("{} {}\n{hint}", out.ink(Ink::Bad, "error:"), failure.message)
    };
    // With standard error closed there is nobody left to tell; the exit code still says it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Ends this process with a failure that no caller can be given: it is found on a thread of its own.
pub(crate) fn end(out: &Out, failure: &Failure, before: impl FnOnce()) -> ! {
    report(out, failure);
    before();
    std::process::exit(i32::from(failure.exit as u8));
}

/// Whether what may be a terminal is one that takes colours, and nobody asked for none.
fn takes_colour(terminal: bool) -> bool {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    terminal && !plain && !dumb
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of bytes for people: `1.4 MiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(number) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{number} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

/// The first and last digits of a hash, for people who only want to tell two apart.
pub(crate) fn short(hash: impl Display) -> String {
    let text = hash.to_string();
    match (text.get(..8), text.get(text.len().saturating_sub(4)..)) {
        (Some(head), Some(tail)) if text.len() > 16 => format!("{head}…{tail}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_next_names_the_program_that_says_it() {
        let next =
            |program| Out::new(true).of(program).called("keelstone query x, or keelstone node; /srv/keelstone stays");
        assert_eq!(next("market"), "market query x, or market node; /srv/keelstone stays");
        assert_eq!(next(NAME), "keelstone query x, or keelstone node; /srv/keelstone stays");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1_468_006), "1.3 MiB");
        assert_eq!(short("0123456789abcdef0123"), "01234567…0123");
    }
}
