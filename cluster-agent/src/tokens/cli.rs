//! `godwit token ...` and `godwit ca`.

use clap::Subcommand;
use hyper::Method;

use super::routes::{AuthorityView, CreateToken, NewToken, TOKENS_PATH, TokenView};
use crate::cli::table::table;
use crate::cli::{Agent, CliError, print, print_json};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token and print it: the only time it is shown.
    Create {
        /// What to call it: whose it is, or what it is for.
        name: String,
        /// It may see everything and change nothing.
        #[arg(long)]
        read_only: bool,
    },
    /// List the tokens, without their secrets.
    List,
    /// Take a token's power away, everywhere, within seconds.
    Revoke {
        /// The token's name.
        name: String,
    },
}

/// Carry it out.
pub async fn run(agent: &Agent, verb: TokenVerb) -> Result<(), CliError> {
    match verb {
        TokenVerb::Create { name, read_only } => {
            let wish = CreateToken { name, read_only };
            let new: NewToken = agent.call(Method::POST, TOKENS_PATH, &wish).await?;
            if agent.json {
                return print_json(&new);
            }
            print(&format!("{}\n", new.token))
        }
        TokenVerb::List => {
            let tokens = |tokens: &Vec<TokenView>| {
                let rows: Vec<_> = tokens.iter().map(row).collect();
                table(["TOKEN", "MAY"], &rows)
            };
            agent.show(TOKENS_PATH, tokens).await
        }
        TokenVerb::Revoke { name } => {
            let path = format!("{TOKENS_PATH}/{name}");
            agent.act(Method::DELETE, &path, &()).await
        }
    }
}

fn row(token: &TokenView) -> [String; 2] {
    let may = if token.read_only {
        "see"
    } else {
        "see and steer"
    };
    [token.name.clone(), may.to_owned()]
}

/// Print the certificate that operators from afar trust.
pub async fn authority(agent: &Agent) -> Result<(), CliError> {
    let authority: AuthorityView = agent.ask("/v1/ca").await?;
    if agent.json {
        return print_json(&authority);
    }
    print(&authority.certificate_pem)
}
