//! The `devpagemap` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    devpagemap_cli::command::main_with(std::env::args_os())
}
