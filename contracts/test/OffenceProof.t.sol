// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "./Test.sol";
import {recoverSigner} from "./recoverSigner.sol";

/// @dev What a contract that takes a stake will do with `quorate.abci.evidence.Equivocation.proof`: believe two signatures.
contract EquivocationChecker {
    bytes32 private constant DOMAIN = keccak256(
        abi.encode(keccak256("EIP712Domain(string name,string version)"), keccak256("Quorate payload"), keccak256("1"))
    );
    bytes32 private constant PAYLOAD =
        keccak256("Payload(string chain,uint64 period,uint64 sequence,string round,bytes32 opening,bytes32 body)");

    struct Proof {
        address member;
        string chain;
        uint64 period;
        uint64 sequence;
        string round;
        bytes32 opening;
        bytes32 body;
        bytes signature;
        bytes32 otherBody;
        bytes otherSignature;
    }

    error NoContradiction(bytes32 body);
    error MayComeSeveralTimes(string round);
    error NotSignedBy(address member, address signer);

    /// @return member who signed two payloads for one opening of one round of `chain`.
    /// @return chain the chain's id: a contract compares it with the service's own.
    function check(bytes calldata proof) external pure returns (address member, string memory chain) {
        Proof memory p = abi.decode(proof, (Proof));
        if (p.body == p.otherBody) revert NoContradiction(p.body);
        bytes memory round = bytes(p.round);
        for (uint256 i = 0; i < round.length; ++i) {
            if (round[i] == "/") revert MayComeSeveralTimes(p.round); // a tick or an ask
        }
        _requireSigned(p, p.body, p.signature);
        _requireSigned(p, p.otherBody, p.otherSignature);
        return (p.member, p.chain);
    }

    function _requireSigned(Proof memory p, bytes32 body, bytes memory signature) private pure {
        bytes32 payload = keccak256(
            abi.encode(
                PAYLOAD, keccak256(bytes(p.chain)), p.period, p.sequence, keccak256(bytes(p.round)), p.opening, body
            )
        );
        address signer = recoverSigner(keccak256(abi.encodePacked("\x19\x01", DOMAIN, payload)), signature);
        if (signer != p.member || signer == address(0)) revert NotSignedBy(p.member, signer);
    }
}

contract OffenceProofTest is Test {
    /// @dev tests/unit/test_offence_proof.py makes the same bytes from the same key.
    bytes internal constant PROOF =
    // begin
     hex"0000000000000000000000000000000000000000000000000000000000000020"
        hex"0000000000000000000000009655a3f7e4fa33618210ddd14616e0cf84ebeb0b"
        hex"0000000000000000000000000000000000000000000000000000000000000140"
        hex"0000000000000000000000000000000000000000000000000000000000000003"
        hex"0000000000000000000000000000000000000000000000000000000000000011"
        hex"0000000000000000000000000000000000000000000000000000000000000180"
        hex"1111111111111111111111111111111111111111111111111111111111111111"
        hex"21a2cb311ba1574c7392bcc252d8d03f8812305f41136d13e2b27a12ab5be9aa"
        hex"00000000000000000000000000000000000000000000000000000000000001c0"
        hex"65c6e8874f34d38c6e9c0357951cc999b6cad5c4279236ea8036d8d71400ae78"
        hex"0000000000000000000000000000000000000000000000000000000000000240"
        hex"0000000000000000000000000000000000000000000000000000000000000007"
        hex"68656c6c6f2d3100000000000000000000000000000000000000000000000000"
        hex"000000000000000000000000000000000000000000000000000000000000000a"
        hex"4772656574526f756e6400000000000000000000000000000000000000000000"
        hex"0000000000000000000000000000000000000000000000000000000000000041"
        hex"87b72eb1f6f797bdd710466a4885749a4cfc9996b410a6f4a7a4bf44ed4c683d"
        hex"2810d789443a1424340d5a375f59ec6345d9ca2201badd7a89cafdaf11d893b8"
        hex"1c00000000000000000000000000000000000000000000000000000000000000"
        hex"0000000000000000000000000000000000000000000000000000000000000041"
        hex"e0ffaa825a3c091cd27aa1f76407fea8f8b1b41464e7a323fa4cdf5acf67c177"
        hex"529d2fa3ea52501b05db10d7aa200dfa5fb0faa08f88f636b57191cf51717bc8"
        hex"1b00000000000000000000000000000000000000000000000000000000000000";
    // end

    address internal constant MEMBER = 0x9655A3F7E4fA33618210DDd14616E0cF84eBEB0b;

    EquivocationChecker internal checker = new EquivocationChecker();

    function test_twoSignaturesForOneOpeningConvictTheirSigner() public view {
        (address member, string memory chain) = checker.check(PROOF);
        assertEq(member, MEMBER);
        assertEq(chain, "hello-1");
    }

    function testFuzz_noByteOfTheProofCanBeAnother(uint256 index, uint8 flip) public view {
        bytes memory forged = PROOF;
        index = bound(index, 0, forged.length - 1);
        forged[index] = bytes1(uint8(forged[index]) ^ uint8(bound(flip, 1, 255)));
        try checker.check(forged) returns (address member, string memory chain) {
            // only what nothing depends on may differ: padding, and where a string lies
            assertEq(member, MEMBER);
            assertEq(chain, "hello-1");
        } catch {}
    }
}
