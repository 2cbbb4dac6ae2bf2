//! stub
#![allow(missing_docs)]
use crate::model::*;
use std::path::PathBuf;
#[derive(Debug, Clone)] pub struct Address { pub host: String, pub port: u16, pub user: String, pub host_keys: Vec<String>, pub identity_file: Option<PathBuf> }
#[derive(Debug, Clone)] pub struct Launched { pub instance: Instance, pub address: Address }
#[derive(Debug, thiserror::Error)] #[error("x {0}")] pub struct ProviderError(String);
#[derive(Debug)] pub struct Provider { dir: PathBuf, key: String, procs: std::sync::Mutex<std::collections::BTreeMap<String, std::process::Child>> }
#[derive(Debug)] pub struct ProviderContext { pub state_dir: PathBuf, pub client_key: String }
const SCRIPT: &str = r#"
D=$1; PORT=$2; mkdir -p $D/conf $D/store; cd $D
ssh-keygen -q -t ed25519 -N '' -f host_key
echo "$3" > client_key.pub
cat > sshd_config <<C
ListenAddress 127.0.0.2
Port $PORT
HostKey $D/host_key
PidFile none
AuthorizedKeysFile $D/client_key.pub
UsePAM no
StrictModes no
MaxSessions 100
MaxStartups 1000
SetEnv NIX_REMOTE=local?root=$D/store NIX_CONF_DIR=$D/conf PATH=/usr/local/bin:/usr/bin:/bin
C
cat > conf/nix.conf <<C
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=/bin/busybox
build-users-group =
substituters =
builders =
experimental-features = nix-command flakes ca-derivations
C
"#;
impl Provider {
 pub fn for_pool(_: &PoolSpec, c: &ProviderContext) -> Result<Self, ProviderError> { Ok(Self { dir: c.state_dir.join("local"), key: c.client_key.clone(), procs: Default::default() }) }
 pub async fn launch(&self, b: BuilderId, p: &PoolSpec) -> Result<Launched, ProviderError> {
   let dir = self.dir.join(b.to_string()); let port = 20000 + (b.0 % 1000) as u16;
   let ok = std::process::Command::new("sh").args(["-ec", SCRIPT, "-", dir.to_str().unwrap(), &port.to_string(), &self.key]).status().map_err(|e| ProviderError(e.to_string()))?;
   if !ok.success() { return Err(ProviderError("script".into())); }
   let child = std::process::Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(dir.join("sshd_config")).stderr(std::fs::File::create(dir.join("log")).unwrap()).spawn().map_err(|e| ProviderError(e.to_string()))?;
   self.procs.lock().unwrap().insert(b.to_string(), child);
   let hk = std::fs::read_to_string(dir.join("host_key.pub")).unwrap();
   Ok(Launched { instance: Instance { id: InstanceId::new(b.to_string()), pool: p.name.clone() }, address: Address { host: "127.0.0.2".into(), port, user: std::env::var("USER").unwrap_or("root".into()), host_keys: vec![hk], identity_file: None } })
 }
 pub async fn terminate(&self, i: &InstanceId) -> Result<(), ProviderError> { if let Some(mut c) = self.procs.lock().unwrap().remove(i.as_str()) { c.kill().ok(); c.wait().ok(); } let d = self.dir.join(i.as_str()); std::process::Command::new("sh").args(["-c", "chmod -R u+w $0; rm -rf $0"]).arg(d).status().ok(); Ok(()) }
 pub async fn gone(&self, _: &InstanceId) { std::future::pending().await }
 pub async fn reap_strays(&self) -> Result<usize, ProviderError> { Ok(0) }
}
pub mod probe {
 pub const COMMAND: &str = "nproc; (nix --extra-experimental-features nix-command config show || nix --extra-experimental-features nix-command show-config) 2>/dev/null | grep -E '^(system|system-features|extra-platforms|experimental-features) ='";
 use crate::model::*;
 pub fn parse(o: &crate::ssh::Output) -> Result<BuilderFacts, super::ProviderError> {
  let t = String::from_utf8_lossy(&o.stdout).into_owned(); let n = t.lines().next().and_then(|l| l.parse().ok()).ok_or_else(|| super::ProviderError(format!("{t} {}", o.stderr_tail)))?;
  let get = |k: &str| t.lines().find_map(|l| l.strip_prefix(k).and_then(|l| l.strip_prefix(" = "))).unwrap_or("").to_owned();
  let mut f: std::collections::BTreeSet<Feature> = get("system-features").split_whitespace().map(Feature::new).collect();
  if get("experimental-features").contains("ca-derivations") { f.insert(Feature::new("ca-derivations")); }
  Ok(BuilderFacts { offer: Offer { systems: [System::new(get("system"))].into(), features: f, mandatory: [].into() }, processors: n, nix_version: None })
 }
}
