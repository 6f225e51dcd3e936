//! The block device under `VirtIOBlk`.

use std::sync::Arc;

use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::mmio::MmioTransport;
use tempfile::NamedTempFile;
use virtio_drivers::Error;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use super::guest::{GuestPages, Registers, plug};

const SECTORS: usize = 4096;

fn disk(change: impl FnOnce(&mut DiskConfig)) -> (NamedTempFile, Arc<MmioTransport>) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len((SECTORS * SECTOR_SIZE) as u64).unwrap();
    let mut config = DiskConfig::new(file.path());
    change(&mut config);
    let block = Block::new(DiskImage::open(&config).unwrap());
    (file, plug("vda", block))
}

fn drive(transport: &Arc<MmioTransport>) -> VirtIOBlk<GuestPages, Registers> {
    VirtIOBlk::new(Registers(Arc::clone(transport))).unwrap()
}

#[test]
fn a_foreign_driver_reads_and_writes() {
    let (file, transport) = disk(|_| {});
    let mut blk = drive(&transport);
    assert_eq!((blk.capacity(), blk.readonly()), (SECTORS as u64, false));
    for (sector, count) in [(0, 1), (7, 8), (SECTORS - 1, 1), (64, 128), (0, SECTORS)] {
        let data: Vec<u8> = (0..count * SECTOR_SIZE).map(|n| (n / 3 + sector) as u8).collect();
        blk.write_blocks(sector, &data).unwrap();
        let mut back = vec![0; data.len()];
        blk.read_blocks(sector, &mut back).unwrap();
        assert_eq!(back, data);
        let on_host = std::fs::read(file.path()).unwrap();
        assert_eq!(on_host[sector * SECTOR_SIZE..][..data.len()], data);
    }
    blk.flush().unwrap();
}

#[test]
fn a_foreign_driver_reads_the_serial() {
    let (_file, transport) = disk(|config| config.serial = Some("AXVM-0001".into()));
    let mut id = [0; 20];
    let len = drive(&transport).device_id(&mut id).unwrap();
    assert_eq!(&id[..len], b"AXVM-0001");
}

#[test]
fn a_foreign_driver_is_refused_past_the_end_and_goes_on() {
    let (_file, transport) = disk(|_| {});
    let mut blk = drive(&transport);
    assert_eq!(blk.read_blocks(SECTORS, &mut [0; SECTOR_SIZE]), Err(Error::IoError));
    assert_eq!(blk.write_blocks(SECTORS - 1, &[0; 2 * SECTOR_SIZE]), Err(Error::IoError));
    assert_eq!(blk.read_blocks(usize::MAX, &mut [0; SECTOR_SIZE]), Err(Error::IoError));
    blk.write_blocks(SECTORS - 1, &[1; SECTOR_SIZE]).unwrap();
}

#[test]
fn a_foreign_driver_cannot_write_a_read_only_disk() {
    let (file, transport) = disk(|config| config.read_only = true);
    let mut blk = drive(&transport);
    assert!(blk.readonly());
    assert_eq!(blk.write_blocks(0, &[1; SECTOR_SIZE]), Err(Error::IoError));
    blk.read_blocks(0, &mut [0; SECTOR_SIZE]).unwrap();
    assert!(std::fs::read(file.path()).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_second_driver_finds_what_the_first_one_left() {
    let (_file, transport) = disk(|_| {});
    for round in 1..10u8 {
        let mut blk = drive(&transport);
        let mut data = [0; SECTOR_SIZE];
        blk.read_blocks(3, &mut data).unwrap();
        assert_eq!(data, [round - 1; SECTOR_SIZE]);
        blk.write_blocks(3, &[round; SECTOR_SIZE]).unwrap();
    }
}
