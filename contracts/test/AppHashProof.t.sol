// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "./Test.sol";
import {recoverSigner} from "./recoverSigner.sol";

/// @dev What a contract that takes a stake will do with `quorate.abci.evidence.WrongAppHash.proof`: believe one signature,
/// and compare what it says with what a light client of `chain` has told: the hash of the block at that height, and the
/// app hash in the header after it.
contract AppHashChecker {
    bytes32 private constant DOMAIN = keccak256(
        abi.encode(keccak256("EIP712Domain(string name,string version)"), keccak256("Quorate app hash"), keccak256("1"))
    );
    bytes32 private constant STATEMENT =
        keccak256("Statement(string chain,uint64 height,bytes32 block,bytes32 appHash)");

    struct Proof {
        address member;
        string chain;
        uint64 height;
        bytes32 blockHash;
        bytes32 appHash;
        bytes signature;
    }

    error NeverDecided(bytes32 blockHash);
    error Agreed(bytes32 appHash);
    error NotSignedBy(address member, address signer);

    /// @return member who signed another app hash than `agreed`, of the block `decided`.
    /// @return chain the chain's id: a contract compares it with the service's own.
    /// @return height of the block, by which the light client was asked.
    function check(bytes calldata proof, bytes32 decided, bytes32 agreed)
        external
        pure
        returns (address member, string memory chain, uint64 height)
    {
        Proof memory p = abi.decode(proof, (Proof));
        if (p.blockHash != decided) revert NeverDecided(p.blockHash);
        if (p.appHash == agreed) revert Agreed(agreed);
        bytes32 statement =
            keccak256(abi.encode(STATEMENT, keccak256(bytes(p.chain)), p.height, p.blockHash, p.appHash));
        address signer = recoverSigner(keccak256(abi.encodePacked("\x19\x01", DOMAIN, statement)), p.signature);
        if (signer != p.member || signer == address(0)) revert NotSignedBy(p.member, signer);
        return (p.member, p.chain, p.height);
    }
}

contract AppHashProofTest is Test {
    /// @dev tests/unit/test_offence_proof.py makes the same bytes from the same key.
    bytes internal constant PROOF =
    // begin
     hex"0000000000000000000000000000000000000000000000000000000000000020"
        hex"0000000000000000000000009655a3f7e4fa33618210ddd14616e0cf84ebeb0b"
        hex"00000000000000000000000000000000000000000000000000000000000000c0"
        hex"0000000000000000000000000000000000000000000000000000000000000011"
        hex"1111111111111111111111111111111111111111111111111111111111111111"
        hex"2222222222222222222222222222222222222222222222222222222222222222"
        hex"0000000000000000000000000000000000000000000000000000000000000100"
        hex"0000000000000000000000000000000000000000000000000000000000000007"
        hex"68656c6c6f2d3100000000000000000000000000000000000000000000000000"
        hex"0000000000000000000000000000000000000000000000000000000000000041"
        hex"0aa7ac7c202361a6070692febca481ef26b7bfde8db8c3167aa6461dfb14c91a"
        hex"40522d9d6eab2e5705e4b2934e75e200f510c799b3e62f974a7ee72e1abef351"
        hex"1c00000000000000000000000000000000000000000000000000000000000000";
    // end

    address internal constant MEMBER = 0x9655A3F7E4fA33618210DDd14616E0cF84eBEB0b;
    bytes32 internal constant DECIDED = 0x1111111111111111111111111111111111111111111111111111111111111111;
    bytes32 internal constant STATED = 0x2222222222222222222222222222222222222222222222222222222222222222;
    bytes32 internal constant AGREED = 0x3333333333333333333333333333333333333333333333333333333333333333;

    AppHashChecker internal checker = new AppHashChecker();

    function test_aSignedWrongAppHashOfADecidedBlockConvictsItsSigner() public view {
        (address member, string memory chain, uint64 height) = checker.check(PROOF, DECIDED, AGREED);
        assertEq(member, MEMBER);
        assertEq(chain, "hello-1");
        assertEq(height, 17);
    }

    function test_whoStatedTheAgreedAppHashOrOneOfAnotherBlockIsInnocent() public {
        vm.expectRevert(abi.encodeWithSelector(AppHashChecker.Agreed.selector, STATED));
        checker.check(PROOF, DECIDED, STATED);
        vm.expectRevert(abi.encodeWithSelector(AppHashChecker.NeverDecided.selector, DECIDED));
        checker.check(PROOF, AGREED, AGREED);
    }

    function testFuzz_noByteOfTheProofCanBeAnother(uint256 index, uint8 flip) public view {
        bytes memory forged = PROOF;
        index = bound(index, 0, forged.length - 1);
        forged[index] = bytes1(uint8(forged[index]) ^ uint8(bound(flip, 1, 255)));
        try checker.check(forged, DECIDED, AGREED) returns (address member, string memory chain, uint64 height) {
            // only what nothing depends on may differ: padding, and where a string lies
            assertEq(member, MEMBER);
            assertEq(chain, "hello-1");
            assertEq(height, 17);
        } catch {}
    }
}
