//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1): what Linux needs to find its
//! processors, its PCI bus, its serial port and its power button.

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed,
    Method, Name, Notify, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as RegisterSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::power::{RESET_VALUE, SLEEP_TYPE_OFF, reset_port, sleep_ports};
use crate::layout::{
    ACPI_TABLES, ACPI_TABLES_END, ECAM, ECAM_LEN, IOAPIC, LOCAL_APIC, PANIC_PORT, PCI_WINDOW,
    POWER_BUTTON_IRQ, SERIAL_IRQ, SERIAL_PORT,
};
use crate::memory::GuestMemory;

const OEM: [u8; 6] = *b"GODWIT";
const OEM_TABLE: [u8; 8] = *b"GODWITVM";
const OEM_REVISION: u32 = 1;
/// The revision in which integers of the DSDT have 64 bits.
const DSDT_REVISION: u8 = 6;
const HEADER_BYTES: u32 = 36;
// ACPI 6.5 §5.2.9.3.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_CLOCK: u16 = 1 << 5;
/// The value that tells a power button's device that it was pressed (ACPI 6.5 §5.6.6).
const PRESSED: u8 = 0x80;

/// Why the tables could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They outgrew their place.
    #[error("the ACPI tables do not fit below {ACPI_TABLES_END:#x}")]
    NoRoom,
    /// Guest memory refused them.
    #[error("cannot write the ACPI tables into guest memory: {0}")]
    Write(vm_memory::GuestMemoryError),
}

/// Write the tables for a machine with `cpus` processors; returns the address of the RSDP.
pub fn write(memory: &GuestMemory, cpus: u32) -> Result<u64, AcpiError> {
    // The RSDP comes first; tables follow in any order.
    let mut room = Room {
        memory,
        next: ACPI_TABLES + Rsdp::len() as u64,
    };
    let dsdt = room.put(&dsdt(cpus))?;
    let fadt = room.put(&bytes_of(&fadt(dsdt)))?;
    let madt = room.put(&bytes_of(&madt(cpus)))?;
    let mcfg = room.put(&bytes_of(&mcfg()))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = room.put(&bytes_of(&xsdt))?;
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    let written = memory.write_slice(&rsdp, GuestAddress(ACPI_TABLES));
    written.map_err(AcpiError::Write)?;
    Ok(ACPI_TABLES)
}

struct Room<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Room<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let at = self.next.next_multiple_of(16);
        self.next = at + table.len() as u64;
        if self.next > ACPI_TABLES_END {
            return Err(AcpiError::NoRoom);
        }
        let written = self.memory.write_slice(table, GuestAddress(at));
        written.map(|()| at).map_err(AcpiError::Write)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn byte_register(port: u16) -> GAS {
    let port = u64::from(port);
    GAS::new(RegisterSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // There is no fixed power button; it is a device of the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let (control, status) = sleep_ports();
    // Linux would wait for each answer of a real-time clock that is not there.
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_CLOCK).into();
    fadt.reset_reg = byte_register(reset_port());
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = byte_register(control);
    fadt.sleep_status_reg = byte_register(status);
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let controller = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, controller);
    for cpu in 0..cpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM, 0, 0, 0);
    mcfg
}

fn dsdt(cpus: u32) -> Vec<u8> {
    let mut sdt = Sdt::new(
        *b"DSDT",
        HEADER_BYTES,
        DSDT_REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    let sleep_off = aml::Package::new(vec![&SLEEP_TYPE_OFF]);
    let s5 = Name::new(Path::new("_S5_"), &sleep_off);
    let parts = [
        bytes_of(&s5),
        processors(cpus),
        pci_root(),
        serial(),
        power_button(),
        panic_device(),
    ];
    sdt.append_slice(&parts.concat());
    sdt.as_slice().to_vec()
}

fn processors(cpus: u32) -> Vec<u8> {
    (0..cpus)
        .flat_map(|cpu| {
            let path = format!("\\_SB_.C{cpu:03X}");
            let id = Name::new(Path::new("_HID"), &"ACPI0007");
            let uid = Name::new(Path::new("_UID"), &cpu);
            bytes_of(&Device::new(Path::new(&path), vec![&id, &uid]))
        })
        .collect()
}

fn pci_root() -> Vec<u8> {
    let window_end = PCI_WINDOW.base + (PCI_WINDOW.bytes - 1);
    let bus = AddressSpace::<u16>::new_bus_number(0, 0);
    let ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let bars = AddressSpace::new_memory(uncached, true, PCI_WINDOW.base, window_end, None);
    let windows = ResourceTemplate::new(vec![&bus, &ports, &bars]);
    let root = bytes_of(&Device::new(
        Path::new("\\_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_SEG"), &aml::ZERO),
            &Name::new(Path::new("_BBN"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &windows),
        ],
    ));
    // Linux trusts the MCFG only where a device reserves its range (PCI Firmware 3.3 §4.1.2).
    let range = Memory32Fixed::new(true, ECAM as u32, ECAM_LEN as u32);
    let ecam = ResourceTemplate::new(vec![&range]);
    let reserved = bytes_of(&Device::new(
        Path::new("\\_SB_.ECAM"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_CRS"), &ecam),
        ],
    ));
    [root, reserved].concat()
}

fn serial() -> Vec<u8> {
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_IRQ);
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    let resources = ResourceTemplate::new(vec![&interrupt, &ports]);
    bytes_of(&Device::new(
        Path::new("\\_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    ))
}

/// The button, and the generic event device (ACPI 6.5 §5.6.9) that says it was pressed.
fn power_button() -> Vec<u8> {
    let uid = Name::new(Path::new("_UID"), &aml::ZERO);
    let button_id = Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"));
    let button = Device::new(Path::new("PWRB"), vec![&button_id, &uid]);

    let button_path = Path::new("PWRB");
    let pressed = Notify::new(&button_path, &PRESSED);
    let on_event = Method::new(Path::new("_EVT"), 1, true, vec![&pressed]);
    let interrupt = Interrupt::new(true, true, false, false, POWER_BUTTON_IRQ);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt]));
    let events_id = Name::new(Path::new("_HID"), &"ACPI0013");
    let events = Device::new(
        Path::new("GED_"),
        vec![&events_id, &uid, &resources, &on_event],
    );
    bytes_of(&Scope::new(Path::new("\\_SB_"), vec![&button, &events]))
}

/// QEMU's pvpanic, which Linux has a driver for.
fn panic_device() -> Vec<u8> {
    let port = IO::new(PANIC_PORT, PANIC_PORT, 1, 1);
    let resources = ResourceTemplate::new(vec![&port]);
    bytes_of(&Device::new(
        Path::new("\\_SB_.PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::map;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn number(table: &[u8], at: usize, bytes: usize) -> u64 {
        let digits = table[at..at + bytes].iter().rev();
        digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The tables of a machine, found from the root as a kernel finds them.
    struct Tables {
        fadt: Vec<u8>,
        madt: Vec<u8>,
        mcfg: Vec<u8>,
        dsdt: Vec<u8>,
    }

    fn tables(cpus: u32) -> Tables {
        let memory = map(16, false).unwrap();
        let rsdp = write(&memory, cpus).unwrap();
        let read = |at: u64, bytes: usize| {
            let mut table = vec![0; bytes];
            memory.read_slice(&mut table, GuestAddress(at)).unwrap();
            table
        };
        let root = read(rsdp, 36);
        assert_eq!((&root[..8], sum(&root)), (&b"RSD PTR "[..], 0));
        let table = |at: u64, name: &[u8; 4]| {
            let bytes = number(&read(at + 4, 4), 0, 4) as usize;
            let table = read(at, bytes);
            assert_eq!((&table[..4], sum(&table)), (&name[..], 0));
            table
        };
        let xsdt = table(number(&root, 24, 8), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 3 * 8);
        let listed = |n: usize| number(&xsdt, 36 + 8 * n, 8);
        let fadt = table(listed(0), b"FACP");
        Tables {
            dsdt: table(number(&fadt, 140, 8), b"DSDT"),
            madt: table(listed(1), b"APIC"),
            mcfg: table(listed(2), b"MCFG"),
            fadt,
        }
    }

    // ACPI 6.5 §5.2.12: entries of a type and a length follow the local APICs' address and flags.
    #[test]
    fn the_madt_lists_each_processor_once_and_the_ioapic() {
        for cpus in [1, 2, 64] {
            let madt = tables(cpus).madt;
            assert_eq!(number(&madt, 36, 4), u64::from(LOCAL_APIC));
            let (mut at, mut ids, mut ioapics) = (44, Vec::new(), Vec::new());
            while at < madt.len() {
                let entry = &madt[at..at + usize::from(madt[at + 1])];
                match entry[0] {
                    0 => {
                        assert_eq!(number(entry, 4, 4), 1, "it is enabled");
                        ids.push((entry[2], entry[3]));
                    }
                    1 => ioapics.push((number(entry, 4, 4), number(entry, 8, 4))),
                    other => panic!("an entry of type {other}"),
                }
                at += entry.len();
            }
            let wanted: Vec<_> = (0..cpus as u8).map(|cpu| (cpu, cpu)).collect();
            assert_eq!(ids, wanted);
            assert_eq!(ioapics, [(u64::from(IOAPIC), 0)]);
        }
    }

    // ACPI 6.5 §5.2.9: flags at 112, the reset register at 116, sleep registers at 244 and 256.
    #[test]
    fn the_fadt_is_that_of_a_reduced_machine_which_can_be_reset_and_sent_to_sleep() {
        let fadt = tables(1).fadt;
        let flags = number(&fadt, 112, 4);
        for (bit, what) in [
            (4, "no fixed power button"),
            (5, "no fixed sleep button"),
            (10, "there is a reset register"),
            (20, "reduced hardware"),
        ] {
            assert_eq!(flags >> bit & 1, 1, "{what}");
        }
        let (control, status) = sleep_ports();
        for (at, port) in [(116, reset_port()), (244, control), (256, status)] {
            // A byte of I/O space.
            assert_eq!(fadt[at..at + 4], [1, 8, 0, 1], "register at {at}");
            assert_eq!(
                number(&fadt, at + 4, 8),
                u64::from(port),
                "register at {at}"
            );
        }
        assert_eq!(fadt[128], RESET_VALUE);
    }

    // PCI Firmware 3.3 §4.1.2, table 4-2.
    #[test]
    fn the_mcfg_tells_where_the_one_bus_is_configured() {
        let mcfg = tables(1).mcfg;
        assert_eq!(mcfg.len(), 44 + 16);
        assert_eq!(number(&mcfg, 44, 8), ECAM);
        assert_eq!(number(&mcfg, 52, 2), 0, "the segment");
        assert_eq!(mcfg[54..56], [0, 0], "first and last bus");
    }

    #[test]
    fn the_dsdt_names_every_device() {
        for cpus in [1, 64] {
            let dsdt = tables(cpus).dsdt;
            let count = |name: &[u8]| {
                dsdt.windows(name.len())
                    .filter(|part| *part == name)
                    .count()
            };
            for name in [
                &b"PCI0"[..],
                b"ECAM",
                b"COM1",
                b"GED_",
                b"PEVT",
                b"_S5_",
                b"_EVT",
            ] {
                assert_eq!(count(name), 1, "{}", String::from_utf8_lossy(name));
            }
            // Its device, and the notification.
            assert_eq!(count(b"PWRB"), 2);
            assert_eq!(count(b"ACPI0007"), cpus as usize);
        }
    }
}
