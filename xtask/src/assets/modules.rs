//! A kernel's modules: finding them, unpacking them, in the order they must be loaded.
//!
//! A package that is unpacked but not installed has no `modules.dep`; each module names in its own `.modinfo` section
//! what it stands on (`depends=a,b`), so we read that. A module that is not there is taken to be built in.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::compressed::decompress;

/// The files below `/lib/modules/RELEASE`, by module name.
pub struct ModuleTree {
    files: HashMap<String, PathBuf>,
}

/// A module, unpacked.
pub struct Module {
    /// Its name as `lsmod` shows it.
    pub name: String,
    /// The ELF object.
    pub bytes: Vec<u8>,
}

impl ModuleTree {
    /// Looks through the directory.
    pub fn scan(dir: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        collect(dir, &mut files).with_context(|| format!("Cannot look for modules in {}", dir.display()))?;
        Ok(Self { files })
    }

    /// Which of the wanted ones are modules here.
    pub fn present<'a>(&self, wanted: &[&'a str]) -> Vec<&'a str> {
        wanted.iter().copied().filter(|name| self.files.contains_key(&name.replace('-', "_"))).collect()
    }

    /// The wanted modules and all they stand on, lowest first. What is not a module here is left out.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in wanted {
            self.add(name, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<Module>) -> Result<()> {
        let name = name.replace('-', "_");
        if order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else { return Ok(()) };
        let bytes = read_module(path).with_context(|| format!("Cannot read module {}", path.display()))?;
        for below in depends(&bytes) {
            self.add(&below, order)?;
        }
        order.push(Module { name, bytes });
        Ok(())
    }
}

fn collect(dir: &Path, files: &mut HashMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in dir.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if bytes.starts_with(b"\x7fELF") { Ok(bytes) } else { decompress(&bytes) }
}

fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &module[at + KEY.len()..];
    let len = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..len]).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_stand_on_and_once() {
        let dir = std::env::temp_dir().join(format!("axvm-modules-{}", std::process::id()));
        fs::create_dir_all(dir.join("kernel/drivers")).unwrap();
        let module = |name: &str, depends: &str| {
            let bytes = format!("\x7fELF...\0license=GPL\0depends={depends}\0name={name}\0");
            fs::write(dir.join(format!("kernel/drivers/{name}.ko")), bytes).unwrap();
        };
        module("virtio", "");
        module("virtio_ring", "virtio");
        module("virtio-blk", "virtio_ring,virtio,gone");
        let tree = ModuleTree::scan(&dir).unwrap();
        assert_eq!(tree.present(&["virtio_blk", "ext4"]), ["virtio_blk"]);
        let order = tree.load_order(&["virtio_blk", "virtio", "ext4"]).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(order.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["virtio", "virtio_ring", "virtio_blk"]);
    }
}
