// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title The token of the DAO: one token is one vote, once its holder has delegated it (to itself or to another).
/// @notice ERC-20 with EIP-2612 permits and ERC-5805 votes on a clock in seconds. 18 decimals.
/// The whole supply is minted by the constructor. Nobody can mint, burn, pause, or upgrade: there is no owner.
/// @dev Votes of a past moment are read from checkpoints, so tokens that are borrowed within a transaction carry no vote.
interface IQuorateToken {
    /// @notice What one account holds from the start, in units of 1e-18 token.
    struct Allocation {
        address account;
        uint256 amount;
    }

    /// @notice The supply would be zero.
    error NoAllocation();

    /// @notice An account was named without an amount: most likely a mistake in the deployment.
    error EmptyAllocation(address account);
}
