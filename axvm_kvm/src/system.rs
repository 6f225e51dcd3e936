//! The open `/dev/kvm`: what the host offers, and the way to a VM.
//!
//! ```text
//!   open_at(path) --> character device? --> API version 12? --> required capabilities? --> Kvm --create_vm(ram)--> Vm
//!   survey(path)  --> the same questions, and no judgement                             --> Survey
//! ```
//!
//! Spec: KVM API 4.1 `KVM_GET_API_VERSION`, 4.2 `KVM_CREATE_VM`, 4.3 `KVM_GET_MSR_INDEX_LIST`,
//! 4.46 `KVM_GET_SUPPORTED_CPUID`. Left out: processors other than x86-64.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use axvm_arch::cpuid::CpuidEntry;
use axvm_memory::GuestRam;
use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};

use crate::{Capabilities, KvmError, Survey, Vm, registers, state, vm};

/// An open KVM device, checked to have all that a machine needs.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    capabilities: Capabilities,
}

impl Kvm {
    /// Opens `/dev/kvm`.
    pub fn open() -> Result<Kvm, KvmError> {
        Kvm::open_at(Path::new("/dev/kvm"))
    }

    /// Opens a KVM device under another name.
    pub fn open_at(path: &Path) -> Result<Kvm, KvmError> {
        let fd = open_device(path)?;
        let found = fd.get_api_version();
        if found != KVM_API_VERSION as i32 {
            return Err(KvmError::ApiVersion { path: path.into(), found });
        }
        let capabilities = Capabilities::ask(&fd)?;
        Ok(Kvm { fd, capabilities })
    }

    /// Asks the device all that AxVM wants to know of it, and judges nothing: an old KVM answers too.
    /// A VM is created on trial and ends again.
    pub fn survey(path: &Path) -> Result<Survey, KvmError> {
        let fd = open_device(path)?;
        let api_version = fd.get_api_version();
        if api_version < 0 {
            return Err(KvmError::ApiVersion { path: path.into(), found: api_version });
        }
        let vm = vm::create_fd(&fd).map(drop);
        let cpuid = supported_cpuid(&fd).unwrap_or_default();
        Ok(Survey::ask(&fd, api_version, cpuid, vm))
    }

    /// What this KVM can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// CPUID as this host and its KVM can show it to a guest.
    pub fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, KvmError> {
        supported_cpuid(&self.fd)
    }

    /// Numbers of the MSRs that a vCPU's state consists of.
    pub fn supported_msrs(&self) -> Result<Vec<u32>, KvmError> {
        let list = self.fd.get_msr_index_list().map_err(query("the supported MSRs (KVM_GET_MSR_INDEX_LIST)"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Creates a VM with `ram` as its memory, and with interrupt controllers and a timer.
    pub fn create_vm(&self, ram: &Arc<GuestRam>) -> Result<Vm, KvmError> {
        let msrs = state::indices(&self.supported_msrs()?).into();
        Vm::create(&self.fd, self.capabilities, msrs, ram)
    }
}

/// Opens the device and nothing else.
fn open_device(path: &Path) -> Result<kvm_ioctls::Kvm, KvmError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| KvmError::Open { path: path.into(), source: io::Error::from(error) })?;
    kvm_ioctls::Kvm::new_with_path(name).map_err(|errno| open_error(path, errno.into()))
}

fn supported_cpuid(fd: &kvm_ioctls::Kvm) -> Result<Vec<CpuidEntry>, KvmError> {
    let cpuid = fd
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(query("the supported CPUID leaves (KVM_GET_SUPPORTED_CPUID)"))?;
    Ok(cpuid.as_slice().iter().map(registers::cpuid_entry).collect())
}

/// Says what to do when the device does not open.
fn open_error(path: &Path, source: io::Error) -> KvmError {
    let path = path.into();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => KvmError::Missing { path, source },
        Some(libc::EACCES | libc::EPERM) => KvmError::Permission { path, source },
        _ => KvmError::Open { path, source },
    }
}

fn query(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |errno| KvmError::Query { what, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    fn message(path: &str) -> String {
        Kvm::open_at(Path::new(path)).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_device_names_module_firmware_and_container() {
        let text = message("/dev/no-such-kvm");
        for remedy in ["/dev/no-such-kvm", "modprobe kvm_intel", "firmware", "--device /dev/kvm"] {
            assert!(text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_kvm_is_told_apart() {
        assert!(message("/dev/null").contains("API version -1, AxVM speaks 12"), "{}", message("/dev/null"));
        assert!(message("/proc").starts_with("Cannot open /proc for reading and writing"), "{}", message("/proc"));
        assert!(message("/dev/\0").starts_with("Cannot open"));
    }

    #[test]
    fn a_survey_opens_nothing_but_kvm() {
        assert!(matches!(Kvm::survey(Path::new("/dev/null")), Err(KvmError::ApiVersion { found: -1, .. })));
        assert!(matches!(Kvm::survey(Path::new("/dev/no-such-kvm")), Err(KvmError::Missing { .. })));
    }

    #[test]
    fn no_permission_says_which_group() {
        let error = open_error(Path::new("/dev/kvm"), io::Error::from_raw_os_error(libc::EACCES));
        assert!(error.to_string().contains("sudo usermod -aG kvm $USER"), "{error}");
        assert!(error.source().is_some());
    }
}
