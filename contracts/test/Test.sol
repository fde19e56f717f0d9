// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @dev The cheat codes of forge that the tests here use (no registry carries forge-std).
interface Vm {
    function assume(bool condition) external pure;
    function expectEmit() external;
    function expectRevert(bytes calldata revertData) external;
    function expectRevert(bytes4 selector) external;
    function getBlockTimestamp() external view returns (uint256);
    function prank(address sender) external;
    function startPrank(address sender) external;
    function stopPrank() external;
    function warp(uint256 timestamp) external;
    function chainId(uint256 id) external;
    function addr(uint256 privateKey) external pure returns (address);
    function sign(uint256 privateKey, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
}

/// @dev Assertions that say both values.
abstract contract Test {
    Vm internal constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);

    // What forge asks a test contract for.
    // forge-lint: disable-next-line(mixed-case-function)
    bool public IS_TEST = true;

    error NotEqualUint(uint256 actual, uint256 expected);
    error NotEqualAddress(address actual, address expected);
    error NotEqualBytes32(bytes32 actual, bytes32 expected);
    error NotEqualString(string actual, string expected);
    error NotTrue(string claim);

    function assertEq(uint256 actual, uint256 expected) internal pure {
        if (actual != expected) revert NotEqualUint(actual, expected);
    }

    function assertEq(address actual, address expected) internal pure {
        if (actual != expected) revert NotEqualAddress(actual, expected);
    }

    function assertEq(bytes32 actual, bytes32 expected) internal pure {
        if (actual != expected) revert NotEqualBytes32(actual, expected);
    }

    function assertEq(string memory actual, string memory expected) internal pure {
        if (keccak256(bytes(actual)) != keccak256(bytes(expected))) revert NotEqualString(actual, expected);
    }

    function assertTrue(bool condition, string memory claim) internal pure {
        if (!condition) revert NotTrue(claim);
    }

    /// @dev A value between `low` and `high`, both included, that depends on `value` only.
    function bound(uint256 value, uint256 low, uint256 high) internal pure returns (uint256) {
        if (value >= low && value <= high) return value;
        uint256 size = high - low + 1;
        return size == 0 ? value : low + value % size;
    }
}
