// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

uint256 constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

/// @dev Who signed `digest`; the zero address where `signature` is not r, s, v with a low s.
function recoverSigner(bytes32 digest, bytes memory signature) pure returns (address) {
    if (signature.length != 65) return address(0);
    bytes32 r;
    bytes32 s;
    uint8 v = uint8(signature[64]);
    assembly ("memory-safe") {
        r := mload(add(signature, 0x20))
        s := mload(add(signature, 0x40))
    }
    return uint256(s) > HALF_ORDER ? address(0) : ecrecover(digest, v, r, s);
}
