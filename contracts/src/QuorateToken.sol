// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC20Votes} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Votes.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";

import {IQuorateToken} from "./interfaces/IQuorateToken.sol";

/// @notice IQuorateToken says what it does.
contract QuorateToken is IQuorateToken, ERC20, ERC20Permit, ERC20Votes {
    constructor(Allocation[] memory allocations) ERC20("Quorate", "QRT") ERC20Permit("Quorate") {
        if (allocations.length == 0) revert NoAllocation();
        for (uint256 i = 0; i < allocations.length; ++i) {
            if (allocations[i].amount == 0) revert EmptyAllocation(allocations[i].account);
            _mint(allocations[i].account, allocations[i].amount);
        }
    }

    /// @notice Time in seconds: votes are counted by time, not by blocks, so that a chain's block time does not matter.
    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    // solhint-disable-next-line func-name-mixedcase
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    function nonces(address owner) public view override(ERC20Permit, Nonces) returns (uint256) {
        return super.nonces(owner);
    }

    function _update(address from, address to, uint256 value) internal override(ERC20, ERC20Votes) {
        super._update(from, to, value);
    }
}
