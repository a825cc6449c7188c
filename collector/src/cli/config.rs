//! `config`: what is in force.

use super::print;
use crate::config::{Config, KEYS};
use clap::{Args, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Tell what is wrong: file, line, key and remedy.
    Check,
    /// Print what is in force, as a configuration file that says the same.
    Show {
        /// Where each value comes from.
        #[arg(long)]
        origin: bool,
        /// What each key means.
        #[arg(long, conflicts_with = "origin")]
        explain: bool,
    },
}

pub(super) fn tell(args: &ConfigArgs, config: &Config) -> ExitCode {
    match &args.command {
        ConfigCommand::Check => print("the configuration is right\n"),
        ConfigCommand::Show { explain: true, .. } => {
            KEYS.iter()
                .for_each(|key| print(&format!("{:20} {} [{}]\n", key.name, key.meaning, key.default.join(","))));
        }
        ConfigCommand::Show { origin, .. } => print(&config.show(*origin)),
    }
    ExitCode::SUCCESS
}
