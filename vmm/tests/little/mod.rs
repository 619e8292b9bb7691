//! Guests of a few instructions, and the `vmm` command that runs them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Where the code of the little guests lies.
const CODE_AT: u32 = 0x10_0000;

/// 32-bit code that waits for input on the serial port and sends it back, for ever.
#[allow(dead_code, reason = "not every test talks to its guest")]
pub const ECHO: [u8; 17] = [
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0xfb, // jz to the `in`
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0xee, // out dx, al
    0xeb, 0xef, // jmp to the start
];

/// 32-bit code that goes on writing zeroes into each page of 16 MiB, which it has written before.
#[allow(dead_code, reason = "not every test's guest dirties memory")]
pub fn zeroes() -> Vec<u8> {
    const FROM: u32 = 0x100_0000;
    const TO: u32 = 0x200_0000;
    let mut code = vec![0xb8]; // mov eax, FROM
    code.extend(FROM.to_le_bytes());
    code.extend([0xc7, 0x00, 0, 0, 0, 0]); // mov dword [eax], 0
    code.push(0x05); // add eax, 4096
    code.extend(4096u32.to_le_bytes());
    code.push(0x3d); // cmp eax, TO
    code.extend(TO.to_le_bytes());
    code.extend([0x72, 0xee]); // jb to the store
    code.extend([0xeb, 0xe7]); // jmp to the start
    code
}

/// The `vmm` command, in `dir`.
pub fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null());
    command
}

/// Run the `vmm` command in `dir` to its end.
#[allow(dead_code, reason = "not every test waits for the end")]
pub fn vmm(dir: &Path, arguments: &[&str]) -> Output {
    let output = command(dir, arguments).output();
    output.expect("the vmm can be run")
}

/// `true`, said loudly, where guests cannot run.
pub fn cannot_run_guests() -> bool {
    let cannot = vmm::kvm::open().is_err();
    if cannot {
        ground::skip("no usable /dev/kvm here");
    }
    cannot
}

/// An ELF image with a PVH note (Xen's elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`) around `code`.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    const NOTE_AT: u64 = 64 + 2 * 56;
    const CODE_FILE_AT: u64 = 256;
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend([2u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1u32.to_le_bytes());
    image.extend([u64::from(CODE_AT), 64, 0].map(u64::to_le_bytes).concat());
    image.extend(0u32.to_le_bytes());
    image.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut header = |kind: u32, offset: u64, address: u64, bytes: u64| {
        image.extend([kind, 7].map(u32::to_le_bytes).concat());
        let rest = [offset, address, address, bytes, bytes, 4];
        image.extend(rest.map(u64::to_le_bytes).concat());
    };
    header(1, CODE_FILE_AT, u64::from(CODE_AT), code.len() as u64);
    header(4, NOTE_AT, 0, 20);
    image.extend([4u32, 4, 18].map(u32::to_le_bytes).concat());
    image.extend(b"Xen\0");
    image.extend(CODE_AT.to_le_bytes());
    image.resize(CODE_FILE_AT as usize, 0);
    image.extend(code);
    image
}

/// 32-bit code: store one, two or four bytes at `at` (Intel SDM vol. 2, MOV).
#[allow(dead_code, reason = "not every test's guest has devices")]
pub fn store(at: u32, value: &[u8]) -> Vec<u8> {
    let instruction: &[u8] = match value.len() {
        1 => &[0xc6, 0x05],
        2 => &[0x66, 0xc7, 0x05],
        4 => &[0xc7, 0x05],
        _ => panic!("no register is as wide"),
    };
    [instruction, &at.to_le_bytes(), value].concat()
}

/// 32-bit code: write `value` to `port`.
#[allow(dead_code, reason = "not every test talks to its guest")]
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}
