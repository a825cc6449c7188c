//! What a victim has in its memory, its environment and its command line is its own.

mod common;

use common::{Lab, text};
use flate2::read::GzDecoder;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// Fills its heap with a text that is in no file, and has it on its stack and in shared memory
/// as well.
const VICTIM: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static volatile char *kept;
__attribute__((noipa)) static void fill(volatile char *to, size_t bytes)
{
	static const char turned[] = "ifgoftrj_qbfi";

	/* Each letter is the one before that in the text. */
	for (size_t n = 0; n < bytes; n++)
		to[n] = turned[n % (sizeof(turned) - 1)] - 1;
}
int main(void)
{
	char stack[4096];
	char *shared = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	fill(stack, sizeof(stack));
	/* It has what is looked for. */
	write(1, stack, sizeof(stack));
	write(1, getenv("API_TOKEN"), strlen(getenv("API_TOKEN")));
	fill(shared, 65536);
	for (;;) {
		kept = malloc(100000);
		fill(kept, 100000);
	}
	return stack[0];
}
"#;

/// What `fill` writes.
const IN_HEAP: &str = "hefnesqi^paeh";
const IN_ENVIRONMENT: &str = "environment-a7c31f";
const IN_ARGUMENT: &str = "--password=argument-5d09be";
/// Bytes of them: enough to be known, whatever is put around them.
const PART: usize = 12;

/// Every file below a folder with what can be read in it, packed ones unpacked.
fn readable(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(readable(&path));
            continue;
        }
        let content = fs::read(&path).unwrap();
        if content.starts_with(&[0x1f, 0x8b]) {
            let mut unpacked = Vec::new();
            GzDecoder::new(&content[..]).read_to_end(&mut unpacked).unwrap();
            found.push((format!("{} unpacked", path.display()), unpacked));
        }
        found.push((path.display().to_string(), content));
    }
    found
}

/// Files that have a text, or a part of it.
fn with(files: &[(String, Vec<u8>)], secret: &str) -> Vec<String> {
    let parts: Vec<&[u8]> = secret.as_bytes().windows(PART).collect();
    let has = |content: &[u8]| content.windows(PART).any(|window| parts.contains(&window));
    files.iter().filter(|(_, content)| has(content)).map(|(name, _)| name.clone()).collect()
}

#[test]
fn no_heap_contents_environment_or_arguments_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("victim.c"), dir.path().join("victim"));
    fs::write(&source, VICTIM).unwrap();
    let built = Command::new("cc").args(["-O1", "-g", "-o"]).args([&program, &source]).status().unwrap();
    assert!(built.success());
    let variable = format!("API_TOKEN={IN_ENVIRONMENT}");
    let command = ["env", &variable, program.to_str().unwrap(), IN_ARGUMENT];
    let incident = |more: &[&str]| {
        let lab = Lab::new();
        let output = lab.run(&[&["--memory", "64M", "--on-oom", "kill"], more].concat(), &command);
        assert_eq!(output.status.code(), Some(137), "{}", text(&output));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains(IN_HEAP) && printed.contains(IN_ENVIRONMENT), "{printed}");
        let incident = lab.incident();
        assert_eq!(incident["trigger"], "oom");
        assert_eq!(incident["processes"][0]["comm"], "victim", "{}", incident["processes"]);
        let files = readable(lab.out());
        assert!(files.len() > 6 && !with(&files, "fill (victim.c:").is_empty(), "{files:?}");
        (incident["processes"][0]["cmdline"].clone(), files)
    };
    let (cmdline, files) = incident(&[]);
    let found: Vec<_> = [IN_HEAP, IN_ENVIRONMENT, IN_ARGUMENT].map(|secret| with(&files, secret)).concat();
    assert!(found.is_empty() && cmdline.is_null(), "{found:?} {cmdline}");

    let (cmdline, files) = incident(&["--with-cmdline"]);
    assert_eq!(cmdline, serde_json::json!([program.to_str().unwrap(), IN_ARGUMENT]));
    let told = with(&files, IN_ARGUMENT);
    assert!(told.iter().any(|name| name.ends_with("/incident.json")), "{told:?}");
    let found: Vec<_> = [IN_HEAP, IN_ENVIRONMENT].map(|secret| with(&files, secret)).concat();
    assert!(found.is_empty(), "{found:?}");
}
